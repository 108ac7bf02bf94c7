"""live_run: one prompt in a running engine, token by token: what each read, on which node, and which experts it lit.

The plain twin of ``moelab.widgets.LiveDecode``: all that it shows of a prompt is here. The tokens are those of
``engine.generate`` with the same arguments. Bytes and times are the kernels' own counts between two tokens, the fast
tier's are its own (``FastTier.counts``): nothing is derived from a routing. Does not know widgets or threads; ``stop``
may be called from another one. Floor 4: the engine's modules inside methods, they bring torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from moelab.domain.trace import NO_EXPERT, Phase
from moelab.exploration.live_step import LiveStep, LiveTotals
from moelab.policies.counts import NUM_COLUMNS

if TYPE_CHECKING:
    from moelab.engine.engine import Engine
    from moelab.engine.generation import Generation
    from moelab.kernels.counts import Counts

FADES_BY = 0.7
"""What is left of an expert's light with each further token that does not use it."""
OUT_BELOW = 0.01
_NEVER = -1


class Stopped(Exception):
    """Raised inside a prefill that is no longer wanted, between two of its chunks."""


class LiveRun:
    """Iterate over it for its ``LiveStep``s, once. What was so far: ``text``, ``glow``, ``uses``, ``figures``.

    The iteration holds the engine: another thread that steps it gets a ``RuntimeError``. ``ValueError`` for a prompt
    that the engine cannot read.
    """

    def __init__(
        self, engine: Engine, prompt: str | Sequence[int], max_new_tokens: int = 64, *, temperature: float = 0.0,
        seed: int = 0, stop: Sequence[int] | None = None, prefill_chunk: int = 256,
    ) -> None:  # fmt: skip
        from moelab.engine.sampling import Sampling

        self.engine = engine
        self._sequence = engine.new_sequence(
            prompt, max_new_tokens, Sampling(temperature=temperature, seed=seed), None if stop is None else tuple(stop)
        )
        self._prefill_chunk = prefill_chunk
        self._stop = threading.Event()
        self._routed: list[np.ndarray] = []
        shape = (len(engine.routed), engine.spec.n_routed_experts)
        self._last_used = np.full(shape, _NEVER, np.int64)
        self.uses = np.zeros(shape, np.int64)
        self.num_steps = 0
        self.text = ""
        num_nodes = max(layer.num_nodes for layer in engine.routed)
        nothing = np.zeros(num_nodes, np.int64)
        none = LiveTotals(0, 0.0, nothing, nothing.astype(float), np.zeros(NUM_COLUMNS, np.int64))
        self.totals = {Phase.PREFILL: none, Phase.DECODE: none}
        self.result: Generation | None = None

    def stop(self) -> None:
        """End after the token that is being computed, or the chunk of the prompt; from any thread."""
        self._stop.set()

    def __iter__(self) -> Iterator[LiveStep]:
        from moelab.engine.generate import run
        from moelab.engine.generation import Generation
        from moelab.engine.text import TextStream

        engine, sequence = self.engine, self._sequence
        if self.num_steps or self.result is not None:
            raise ValueError("this run is over: expected a new LiveRun for each prompt")
        pieces = TextStream(engine.codec)
        with engine.held("LiveDecode, or another LiveRun,"):
            engine.observers.append(self._watch)
            tokens = cast("Generator[Any]", run(engine, [sequence], prefill_chunk=self._prefill_chunk))
            try:
                while not self._stop.is_set():
                    begin, before, tier_before = time.perf_counter(), self._counted(), self._tier_counts()
                    if next(tokens, None) is None:
                        break
                    seconds = time.perf_counter() - begin
                    token = sequence.token_ids[-1]
                    piece = pieces.push(token) if engine.codec.tokenizer is not None else f"{token} "
                    if sequence.finish_reason is not None:
                        piece += pieces.rest()
                    yield self._take(token, piece, self._counted() - before, self._tier_counts() - tier_before, seconds)
                self.text += pieces.rest() if sequence.finish_reason is None else ""
            except Stopped:
                engine.end_request()  # the policy has seen its beginning
            finally:
                tokens.close()
                engine.observers.remove(self._watch)
                self.result = Generation.of(sequence, engine)

    def _watch(self, step: int, rows: Any, expert_ids: np.ndarray, gate_weights: np.ndarray) -> None:
        self._routed.append(expert_ids)
        if self._stop.is_set() and rows.phase is Phase.PREFILL:
            raise Stopped

    def _counted(self) -> Counts:
        from moelab.kernels.counts import Counts

        return Counts.of(self.engine.routed)

    def _tier_counts(self) -> np.ndarray:
        tier = self.engine.fast_tier
        return np.zeros(NUM_COLUMNS, np.int64) if tier is None else tier.counts.sum(axis=(0, 1))

    def _take(self, token: int, piece: str, counted: Counts, tier_counts: np.ndarray, seconds: float) -> LiveStep:
        experts = np.concatenate(self._routed, axis=1)
        self._routed.clear()
        step = LiveStep(
            self.num_steps, Phase.DECODE if self.num_steps else Phase.PREFILL, token, piece, experts,
            counted.num_bytes.sum(axis=0), counted.seconds.sum(axis=0), tier_counts, seconds,
        )  # fmt: skip
        is_routed = experts != NO_EXPERT
        used = np.zeros(self.uses.shape, np.int64)
        layers, _, _ = np.nonzero(is_routed)
        np.add.at(used, (layers, experts[is_routed]), 1)
        self.uses += used
        self._last_used[used > 0] = step.number
        self.totals[step.phase] = self.totals[step.phase].plus(step)
        self.text += piece
        self.num_steps += 1
        return step

    # --- what was so far ---

    @property
    def glow(self) -> np.ndarray:
        """float32 [L, E]: 1 for the latest token's experts, ``FADES_BY`` for each since, 0 under ``OUT_BELOW``."""
        light = FADES_BY ** (self.num_steps - 1 - self._last_used)
        return np.where((self._last_used == _NEVER) | (light < OUT_BELOW), 0.0, light).astype(np.float32)

    def figures(self) -> dict[str, Any]:
        """Plain values, units in the names; rates, bytes and the tier's counts are of decode where they do not say."""
        prefill, decode = self.totals[Phase.PREFILL], self.totals[Phase.DECODE]
        before = prefill.tier()
        return {
            "prompt_tokens": len(self._sequence.prompt_token_ids),
            "new_tokens": self.num_steps,
            "finished_by": "" if self.result is None else self.result.finish_reason,
            "prefill_s": prefill.seconds,
            "decode_tok_per_s": decode.tok_per_s,
            "gb_per_s_of_node": decode.gb_per_s_of_node,
            "bytes_per_token_of_node": decode.bytes_per_token_of_node,
            "node_imbalance": decode.node_imbalance,
            "virtual_nodes": self.engine.pool.virtual,
            "fast_tier": "none" if self.engine.fast_tier is None else str(self.engine.fast_tier),
            **decode.tier(),
            "prefill_late": before["late"],
            "prefill_uploads": before["uploads"],
        }
