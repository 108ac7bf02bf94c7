"""Stepper: a loaded model that takes forward passes, counts what they read, and lets observers watch their routing.

One device for the dense path, the CPU kernels for the routed experts; on a CPU with native kernels a decode step is
one native call. On the CPU torch keeps one thread in decode, and in prefill of small models, because its thread team
and the kernels' pool would fight for the same cores (2 threads beside one other busy process: up to 600 times slower,
docs/log.md, 2026-11-22, engine); large models (`PREFILL_THREADS_FROM`) prefill their dense part on all workers.
It knows sequences of tokens; it does not know text, sampling or plans. Floor 2.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moelab.domain.lossy import Lossy
from moelab.domain.trace import Phase
from moelab.engine.between import Between
from moelab.engine.cache import LatentCache
from moelab.engine.counters import Counters, DecodeMark, DenseLayers, PhaseCounts, known_limit, limit_of_experts
from moelab.engine.dense import KernelLinears
from moelab.engine.generate import PREFILL_CHUNK, Sequence
from moelab.engine.holder import Holder
from moelab.engine.loader import Loaded
from moelab.engine.step_rates import KnownLimit, StepRates
from moelab.engine.step_routing import StepRouting
from moelab.engine.token_rows import TokenRows
from moelab.kernels.bandwidth import Bandwidth
from moelab.kernels.counts import Counts
from moelab.kernels.read_limit import ReadLimit

if TYPE_CHECKING:
    from moelab.engine.fast_tier.fast_tier import FastTier

Observer = Callable[[int, TokenRows, np.ndarray, np.ndarray], None]
PREFILL_THREADS_FROM = 1024  # hidden_size


class Stepper:
    """One caller at a time.

    `observers` are called after every step as `observer(step, rows, expert_ids, gate_weights)`: `expert_ids` int32
    [L, T, K] over the MoE layers, in rank order, `gate_weights` float32 [L, T, K]; the arrays are theirs to keep.
    An empty list costs nothing; a step that fails is not seen.
    """

    def __init__(self, directory: Path, loaded: Loaded) -> None:
        self.directory = directory
        self.spec = loaded.spec
        self.device = loaded.device
        self.dense_dtype = loaded.dense_dtype
        self.dense_weights = loaded.dense_weights
        self.isa = loaded.isa
        self.activation = loaded.activation
        self.weight_format = loaded.weight_format
        self.weights_fingerprint = loaded.weights_fingerprint
        self.num_skipped_tensors = loaded.num_skipped_tensors
        self.load_s = loaded.load_s
        self.loaded_bytes = loaded.loaded_bytes
        self.weight_bytes = loaded.weight_bytes
        self.packed = loaded.packed
        self.routed = loaded.routed
        self.pool = loaded.pool
        self.model = loaded.model
        self.observers: list[Observer] = []
        self.fast_tier: FastTier | None = None
        self.tier_choice: dict[str, Any] = {}  # what `use_plan` was told of it
        self.lossy: Lossy | None = None
        self._asked: Counter[str] = Counter()
        self._holder = Holder(self.name)
        self.num_steps = 0
        self._request_ended = False
        self._num_tokens = {Phase.PREFILL: 0, Phase.DECODE: 0}
        self._step_s = dict.fromkeys(Phase, 0.0)
        self._num_steps_of_phase = dict.fromkeys(Phase, 0)
        self.read_limit: KnownLimit | None = None
        self._phase_counts = PhaseCounts(self.routed)
        linears = self.model.linears
        made = linears.made if isinstance(linears, KernelLinears) else []
        self._dense_counts = PhaseCounts([DenseLayers(made, self.pool.num_nodes)])
        on_cpu = self.device.type == "cpu"
        large = self.spec.hidden_size >= PREFILL_THREADS_FROM
        self._torch_threads = {
            Phase.PREFILL: (self.pool.num_workers if large else 1) if on_cpu else None,
            Phase.DECODE: 1 if on_cpu else None,
        }

    @property
    def name(self) -> str:
        """The name of the directory, or of the one above a plain `model`: a checkpoint does not carry its own."""
        path = self.directory.resolve()
        return path.parent.name if path.name == "model" else path.name

    @property
    def dense_path(self) -> str:
        """Where and in which arithmetic everything but the routed experts is computed."""
        linears = self.model.linears
        if not isinstance(linears, KernelLinears):
            return f"{self.dense_dtype} on {self.device}"
        return f"{self.dense_weights} weights, {linears.arithmetic}; attention of prefill {self.dense_dtype}"

    @property
    def carried(self) -> str:
        """The numbers that the routed experts' activations are multiplied as: those of the mode, or int16."""
        return self.routed[0].carried

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert in this engine."""
        return self.routed[0].layout.expert_bytes

    @property
    def counters(self) -> Counters:
        return Counters(
            self.num_steps,
            self._num_tokens[Phase.PREFILL],
            self._num_tokens[Phase.DECODE],
            sum(self._step_s.values()),
            sum(layer.seconds for layer in self.routed),
            sum(layer.bytes_read for layer in self.routed),
        )

    def bandwidth(self, phase: Phase = Phase.DECODE) -> Bandwidth:
        """GB/s of the routed experts by layer and node since loading, beside the read limit, which is measured now.

        Linear layers that run on the kernels are a row of their own, `dense`. The limit is read by the workers of the
        latest decode step, or of a step of the phase's mean number of tokens.
        """
        title = f"{self.name}, {phase.name.lower()}: bandwidth by layer and node"
        counts, dense = self._phase_counts.of(phase), self._dense_counts.of(phase)
        if not counts.num_calls.any():
            raise RuntimeError(
                f"{title}: expected steps of this phase, got none since loading; generate something first"
            )
        limit = self._measure(phase, counts)
        if limit is None:
            raise RuntimeError(f"{title}: expected experts with homes, got none: all lie on the fast tier alone")
        known = self.read_limit = known_limit(limit, self.routed)
        if dense.num_bytes.shape[1] > len(limit.gb_per_s_of_node):  # experts that lie on no node of their own
            dense = dense.of_one_node()
        return Bandwidth.of(
            title, counts, limit.gb_per_s_of_node, read_loop=limit.loop_name, cache_resident=known.cache_resident,
            virtual_nodes=self.pool.virtual, dense=dense,
        )  # fmt: skip

    def measure_read_limit(self) -> KnownLimit | None:
        """Reads the routed experts now (mostly below a second) by the workers of the latest decode step, kept as
        `read_limit`; None where no expert has a home.

        Later results have their percentages of it.
        """
        self.check_caller()
        limit = self._measure(Phase.DECODE, self._phase_counts.of(Phase.DECODE))
        self.read_limit = None if limit is None else known_limit(limit, self.routed)
        return self.read_limit

    def _measure(self, phase: Phase, counts: Counts) -> ReadLimit | None:
        top_k, program = self.spec.num_experts_per_tok, self.model.last_program
        if phase is Phase.DECODE and program is not None:
            workers = program.pool
        else:
            num_pairs = self._num_tokens[phase] * top_k // max(1, int(counts.num_calls[0]))
            workers = self.routed[0].workers(max(top_k, num_pairs))
        return limit_of_experts(self.routed, top_k, workers)

    def decode_mark(self) -> DecodeMark:
        """What the kernels have counted in decode until now."""
        routed, dense = self._phase_counts.of(Phase.DECODE), self._dense_counts.of(Phase.DECODE)
        return DecodeMark(routed, dense, self._step_s[Phase.DECODE], self._num_steps_of_phase[Phase.DECODE])

    def decode_rates(self, since: DecodeMark, until: DecodeMark | None = None) -> StepRates | None:
        """Counted GB/s of the decode steps between two marks (None: now), beside `read_limit`; None without a step."""
        return since.rates_until(until or self.decode_mark(), self.read_limit, self.pool.virtual)

    def new_cache(self, num_rows: int) -> LatentCache:
        """An empty cache for `num_rows` sequences."""
        return LatentCache(self.spec.num_hidden_layers, num_rows, self.model.cache_width, self.model.dtype, self.device)

    def prefill(self, sequence: Sequence, cache: LatentCache, row: int, chunk: int = PREFILL_CHUNK) -> torch.Tensor:
        """Feed the prompt in chunks; logits [vocab] after its last token."""
        tokens = torch.tensor(sequence.prompt_token_ids)[None]
        logits = None
        for start in range(0, tokens.shape[1], chunk):
            part = tokens[:, start : start + chunk]
            last = start + chunk >= tokens.shape[1]
            logits = self.step(part, cache, row, [sequence], Phase.PREFILL, "last" if last else "none")
        assert logits is not None
        return logits[0, -1]

    def step(
        self,
        token_ids: torch.Tensor,
        cache: LatentCache,
        row: int,
        sequences: SequenceOf[Sequence],
        phase: Phase,
        want: str,
    ) -> torch.Tensor | None:
        """One forward pass: Q new tokens of each of B sequences in the cache rows [row, row + B).

        token_ids int64 [B, Q] on the CPU -> logits float32 [B, Q] (`all`) or [B, 1] (`last`) x vocab, or None.
        RuntimeError once the engine is closed, and while another thread holds it (`held`).
        """
        with self._holder.held("another step"):
            return self._step(token_ids, cache, row, sequences, phase, want)

    @torch.inference_mode()
    def _step(
        self, token_ids: torch.Tensor, cache: LatentCache, row: int, sequences: SequenceOf[Sequence], phase: Phase,
        want: str,
    ) -> torch.Tensor | None:  # fmt: skip
        if self.pool.closed:
            raise RuntimeError(f"engine of {self.name} is closed: expected an open one; load the model again")
        started = time.perf_counter()
        batch, num_queries = token_ids.shape
        threads, threads_before = self._torch_threads[phase], torch.get_num_threads()
        starts = cache.lengths[row : row + batch]
        rows = routing = None
        between = self.model.between
        if self.observers or between.acts:
            rows = TokenRows(
                [s.request for s in sequences], starts, [s.domain for s in sequences], token_ids.numpy(), phase,
                self._request_ended,
            )  # fmt: skip
        if self.observers:
            routing = StepRouting(
                len(self.routed), batch * num_queries, self.spec.num_experts_per_tok, self.spec.n_routed_experts,
                scores=between.wants_candidates, stale_gate=between.needs_stale,
            )  # fmt: skip
        if rows is not None and between.acts:
            between.begin_step(phase, rows.flags)
        done = False
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            self._phase_counts.enter(phase)
            self._dense_counts.enter(phase)
            at = self.model.positions(cache, row, batch, num_queries)
            logits: torch.Tensor | None = self.model.forward(token_ids.to(self.device), at, cache, routing, want)
            done = True
        finally:
            if threads is not None:
                torch.set_num_threads(threads_before)
            if between.acts:
                between.end_step(failed=not done)
        step = self.num_steps
        for index in range(row, row + batch):
            cache.lengths[index] += num_queries
        self.num_steps += 1
        self._num_tokens[phase] += batch * num_queries
        self._num_steps_of_phase[phase] += 1
        self._request_ended = False
        # After the step is counted: an observer that raises must not leave the others with a step that never was.
        if routing is not None and rows is not None:
            rows.candidate_scores, rows.stale_gate_experts = routing.candidate_scores, routing.stale_gate_experts
            for observer in list(self.observers):
                observer(step, rows, routing.expert_ids, routing.gate_weights)
        self._step_s[phase] += time.perf_counter() - started
        return logits

    @contextmanager
    def held(self, by: str) -> Iterator[None]:
        """Inside the block only this thread may step, change or close the engine; others get a RuntimeError.

        It names `by`. A thread that holds it may hold it again. RuntimeError where another one has it.
        """
        with self._holder.held(by):
            yield

    def check_caller(self) -> None:
        """RuntimeError where another thread holds the engine."""
        self._holder.check()

    def end_request(self) -> None:
        """A request has had its last tokens: policies and observers are told so with the next step."""
        self._request_ended = True

    # --- what happens between routers and experts ---

    def set_fast_tier(self, tier: FastTier | None) -> None:
        """Run beside this tier from the next step on; the one before is closed. `Engine.use_plan` makes them."""
        before, self.fast_tier = self.fast_tier, tier
        self._renew()
        if before is not None:
            before.close()

    def set_lossy(self, lossy: Lossy | None) -> None:
        """Change results on purpose from the next step on; `Engine.use_lossy` checks that it can be."""
        self.lossy = lossy
        self._renew()

    @property
    def policy_reads(self) -> tuple[str, ...]:
        """Names of the optional arrays that the policy of the fast tier looks at."""
        return () if self.fast_tier is None else self.fast_tier.policy.reads

    @contextmanager
    def asking(self, extras: Collection[str]) -> Iterator[None]:
        """Compute these optional arrays (`Trace.extras`) in the steps inside the block; observers find them in rows."""
        self._asked.update(extras)
        self._renew()
        try:
            yield
        finally:
            self._asked.subtract(extras)
            self._renew()

    def _renew(self) -> None:
        extras = frozenset({name for name, count in self._asked.items() if count} | set(self.policy_reads))
        before = self.model.between
        if (before.tier, before.lossy, before.extras) != (self.fast_tier, self.lossy, extras):
            self.model.use_between(Between(self.model.routers, self.fast_tier, self.lossy, extras, before))
