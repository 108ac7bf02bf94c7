"""Engine: a loaded model that generates, counts what it read, and lets observers watch its routing.

One device for the dense path, the CPU kernels for the routed experts; on a CPU with native kernels a decode step is
one native call. On the CPU torch keeps one thread in decode, and in prefill of small models, because its thread team
and the kernels' pool would fight for the same cores (2 threads beside one other busy process: up to 600 times slower,
docs/log.md); large models (`PREFILL_THREADS_FROM`) prefill their dense part on all workers.
With a plan's fast tier (`use_plan`) a share of the experts of each layer runs in its slots, and a step is more than one
call. Floor 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moelab.domain.plan import Plan, TierFormat
from moelab.domain.summary import summary_html, summary_text
from moelab.domain.trace import Phase, TraceHeader
from moelab.engine.cache import LatentCache
from moelab.engine.counters import Counters, DenseLayers, PhaseCounts, bandwidth_beside_limit
from moelab.engine.dense import KernelLinears
from moelab.engine.device import choose_device
from moelab.engine.generate import PREFILL_CHUNK, Sequence, run
from moelab.engine.generation import Generation
from moelab.engine.loader import Loaded, load_model
from moelab.engine.sampling import Sampling
from moelab.engine.step_routing import StepRouting
from moelab.engine.text import TextCodec, TextStream, stop_token_ids
from moelab.engine.token_rows import TokenRows
from moelab.kernels.bandwidth import Bandwidth
from moelab.kernels.job import Activation

if TYPE_CHECKING:
    from moelab.engine.fast_tier.fast_tier import FastTier
    from moelab.policies import Policy

Observer = Callable[[int, TokenRows, np.ndarray, np.ndarray], None]
PREFILL_THREADS_FROM = 1024  # hidden_size


class Engine:
    """A model that runs. Made by `load`; one caller at a time.

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
        self.codec = TextCodec(directory)
        self.stop_token_ids = stop_token_ids(directory, loaded.configs)
        self.num_steps = 0
        self._num_requests = 0
        self._request_ended = False
        self._num_tokens = {Phase.PREFILL: 0, Phase.DECODE: 0}
        self._step_s = 0.0
        self._phase_counts = PhaseCounts(self.routed)
        linears = self.model.linears
        self._dense_counts = PhaseCounts([DenseLayers(linears.made if isinstance(linears, KernelLinears) else [])])
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
    def expert_bytes(self) -> int:
        """Bytes of one routed expert in this engine."""
        return self.routed[0].layout.expert_bytes

    @property
    def counters(self) -> Counters:
        return Counters(
            self.num_steps,
            self._num_tokens[Phase.PREFILL],
            self._num_tokens[Phase.DECODE],
            self._step_s,
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
        top_k, program = self.spec.num_experts_per_tok, self.model.last_program
        if phase is Phase.DECODE and program is not None:
            workers = program.pool
        else:
            workers = self.routed[0].workers(self._num_tokens[phase] * top_k // max(1, int(counts.num_calls[0])))
        return bandwidth_beside_limit(title, counts, dense, self.routed, top_k, workers)

    # --- generation ---

    def generate(
        self,
        prompt: str | SequenceOf[Any],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Iterable[int] | None = None,
        domain: str | None = None,
        batch_size: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> Any:
        """Continue one prompt (text or token ids) -> Generation, or a list of them -> list, decoded together.

        `stop` None: the checkpoint's end tokens; `()`: none. `batch_size` None: all prompts at once.
        """
        several = not isinstance(prompt, str) and any(not isinstance(item, int | np.integer) for item in prompt)
        prompts: list[Any] = list(prompt) if several else [prompt]
        sampling = Sampling(temperature, top_k, top_p, seed)
        sequences = [
            self.new_sequence(text, max_new_tokens, sampling, stop, domain=domain, index=index)
            for index, text in enumerate(prompts)
        ]
        for _ in run(self, sequences, batch_size or max(len(sequences), 1), prefill_chunk):
            pass
        results = [Generation.of(sequence, self) for sequence in sequences]
        return results if several else results[0]

    def stream(
        self,
        prompt: str | SequenceOf[int],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Iterable[int] | None = None,
        domain: str | None = None,
    ) -> Iterator[tuple[int, str]]:
        """Token ids and text pieces as they come; a piece is empty while a character is unfinished."""
        sampling = Sampling(temperature, top_k, top_p, seed)
        sequence = self.new_sequence(prompt, max_new_tokens, sampling, stop, domain=domain)
        pieces = TextStream(self.codec)
        for state in run(self, [sequence]):
            token = state.token_ids[-1]
            piece = pieces.push(token)
            yield token, piece if state.finish_reason is None else piece + pieces.rest()

    def forward(self, token_ids: Any) -> torch.Tensor:
        """Logits float32 [T, vocab] of one sequence, [B, T, vocab] of several of one length; nothing is kept."""
        tokens = torch.as_tensor(token_ids, dtype=torch.int64)
        batch = tokens if tokens.ndim == 2 else tokens[None]
        sequences = [self.new_sequence(row.tolist(), 1, Sampling(), ()) for row in batch]
        logits = self.step(batch, self.new_cache(len(batch)), 0, sequences, Phase.PREFILL, "all")
        self.end_request()
        assert logits is not None
        return logits if tokens.ndim == 2 else logits[0]

    def new_sequence(
        self,
        prompt: str | SequenceOf[int],
        max_new_tokens: int,
        sampling: Sampling,
        stop: Iterable[int] | None = None,
        *,
        domain: str | None = None,
        index: int = 0,
        request: int | None = None,
    ) -> Sequence:
        """A request that has not started. `request` None: the next free number of this engine."""
        if request is None:
            request = self._num_requests
        self._num_requests = max(self._num_requests, request + 1)
        token_ids = self.codec.encode(prompt)
        wrong = next((token for token in token_ids if not 0 <= token < self.spec.vocab_size), None)
        if wrong is not None:
            size = self.spec.vocab_size
            raise ValueError(f"token id: expected 0..{size - 1}, got {wrong}; use this model's tokenizer")
        stops = self.stop_token_ids if stop is None else frozenset(stop)
        return Sequence(request, token_ids, max_new_tokens, sampling, stops, domain, index)

    # --- steps ---

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

    @torch.inference_mode()
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
        RuntimeError once the engine is closed.
        """
        if self.pool.closed:
            raise RuntimeError(f"engine of {self.name} is closed: expected an open one; load the model again")
        started = time.perf_counter()
        batch, num_queries = token_ids.shape
        threads, threads_before = self._torch_threads[phase], torch.get_num_threads()
        starts = cache.lengths[row : row + batch]
        rows = routing = None
        if self.observers or self.fast_tier is not None:
            rows = TokenRows(
                [s.request for s in sequences], starts, [s.domain for s in sequences], token_ids.numpy(), phase,
                self._request_ended,
            )  # fmt: skip
        if self.observers:
            routing = StepRouting(len(self.routed), batch * num_queries, self.spec.num_experts_per_tok)
        if self.fast_tier is not None and rows is not None:
            self.fast_tier.begin_step(phase, rows.flags)
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
            if self.fast_tier is not None:
                self.fast_tier.end_step(failed=not done)
        step = self.num_steps
        for index in range(row, row + batch):
            cache.lengths[index] += num_queries
        self.num_steps += 1
        self._num_tokens[phase] += batch * num_queries
        self._request_ended = False
        # After the step is counted: an observer that raises must not leave the others with a step that never was.
        if routing is not None and rows is not None:
            for observer in list(self.observers):
                observer(step, rows, routing.expert_ids, routing.gate_weights)
        self._step_s += time.perf_counter() - started
        return logits

    def end_request(self) -> None:
        """A request has had its last tokens: policies and observers are told so with the next step."""
        self._request_ended = True

    # --- placement ---

    def use_plan(
        self,
        plan: Plan | None,
        *,
        policy: Policy | None = None,
        late: str = "home",
        keep_log: bool = False,
        device: str | None = None,
    ) -> FastTier | None:
        """Run under a plan's fast tier from the next step on; None: without one. Returns the tier, also `fast_tier`.

        Pinned and placed experts are in their slots when this returns. `policy`: a record that is not in `POLICIES`, in
        place of the one the plan names. `late`: an expert whose copy is not there yet runs from `home`, or the step
        will `wait` (then the arithmetic does not depend on how fast copies were). `keep_log` keeps every decision.
        `device` None: that of the dense path; a CPU stands in for a device and is marked `emulated`. ValueError for a
        plan that is for another model, or that this engine cannot carry out: then the tier before stays.
        """
        if plan is None:
            self._set_fast_tier(None)
            return None
        from moelab.engine.fast_tier.fast_tier import FastTier
        from moelab.engine.fast_tier.plan import check_plan
        from moelab.policies.session import PolicySession

        plan.check_matches(
            what="engine", model=self.name, num_layers=len(self.routed), num_experts=self.spec.n_routed_experts,
            top_k=self.spec.num_experts_per_tok, fingerprint=self.spec.fingerprint,
        )  # fmt: skip
        check_plan(plan, self.routed, late)
        session = PolicySession(plan, policy)
        where = self.device if device is None else choose_device(device)
        self._set_fast_tier(None)  # its memory may be what the new one needs
        tier = FastTier(self.routed, plan, session, where, late=late, keep_log=keep_log)
        self._set_fast_tier(tier)
        return tier

    def trace_header(self) -> TraceHeader:
        """What is true of everything that this engine records; `moelab.planner.empty` plans from it."""
        from moelab.engine.recorder import header_of

        return header_of(self, (), "not stated", "not recorded yet")

    def slot_format(self, weight_format: str) -> TierFormat:
        """A format of the fast tier with the bytes that this model's experts take in it, as a plan wants it."""
        from moelab.engine.fast_tier.plan import layout_of_slots

        layout = layout_of_slots(weight_format, self.routed[0].layout)
        return TierFormat(weight_format=weight_format, expert_bytes=(layout.expert_bytes,) * len(self.routed))

    def _set_fast_tier(self, tier: FastTier | None) -> None:
        before, self.fast_tier = self.fast_tier, tier
        self.model.use_fast_tier(tier)
        if before is not None:
            before.close()

    # --- life and display ---

    def close(self) -> None:
        """End the workers. The engine cannot run afterwards."""
        self.use_plan(None)
        self.pool.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def summary(self) -> dict[str, Any]:
        """What `repr` and `_repr_html_` show."""
        return {
            "model": f"{self.name} ({self.spec.label})",
            "dense path": self.dense_path,
            "routed experts": f"{self.weight_format} weights, {self.activation} activations, {self.isa} kernels, "
            f"{self.pool.num_workers} workers",
            "expert memory": f"{len(self.routed) * self.spec.n_routed_experts * self.expert_bytes / 2**30:.2f} GiB",
            "decode buffers": f"{self.model.step_memory.num_bytes / 2**20:.1f} MiB",
            "loaded": f"{self.loaded_bytes / 1e9:.2f} GB in {self.load_s:.1f} s "
            f"({self.loaded_bytes / 1e9 / max(self.load_s, 1e-9):.2f} GB/s), "
            + ("repacked" if self.packed is None else f"packed before: {self.packed}"),
            "fast tier": "none" if self.fast_tier is None else str(self.fast_tier),
            "tokenizer": "tokenizer.json" if self.codec.tokenizer is not None else "none: give token ids",
            "skipped tensors": ", ".join(f"{n} {kind}" for kind, n in self.num_skipped_tensors.items()) or "none",
        }

    def __repr__(self) -> str:
        return summary_text("Engine", self.summary())

    def _repr_html_(self) -> str:
        return summary_html("Engine", self.summary())


def load(
    model_dir: str | Path,
    *,
    packed: str | Path | None = None,
    device: str | None = None,
    isa: str | None = None,
    activation: Activation | None = None,
    dense_dtype: str | None = None,
    dense_weights: str | None = None,
    num_workers: int | None = None,
    plan: Plan | str | Path | None = None,
) -> Engine:
    """The engine of a Hugging Face checkpoint directory; see `loader.load_model` for the choices.

    `packed`: a folder that `moelab pack` made of this checkpoint, read instead of repacking. `plan`: a plan, or its
    file, for `Engine.use_plan`.
    """
    chosen = Plan.load(plan) if isinstance(plan, str | Path) else plan
    loaded = load_model(
        model_dir, packed=packed, device=device, isa=isa, activation=activation, dense_dtype=dense_dtype,
        dense_weights=dense_weights, num_workers=num_workers,
    )  # fmt: skip
    engine = Engine(Path(model_dir), loaded)
    try:
        engine.use_plan(chosen)
    except BaseException:
        engine.close()
        raise
    return engine
