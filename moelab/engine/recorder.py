"""Recorder: `with record(engine) as trace:` - which experts every token used, while the engine runs.

The trace is empty while the block runs and complete when it ends. With a path every few hundred tokens
go to a trace folder as they come, so that a killed recording keeps what was written; without one they
stay in memory. A sampled token is routed when it is fed, so the LAST token of a request, which never
is, has no row: n new tokens give n - 1 decode rows. A step that fails in the middle leaves no rows.
It does not know how traces are stored or what prompts say. Floor 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moelab.domain.trace import (
    CANDIDATE_SCORES,
    NO_TOKEN_ID,
    STALE_GATE,
    TOKEN_COLUMNS,
    GateWeightKind,
    TokenTable,
    Trace,
    TraceHeader,
)
from moelab.engine.token_rows import TokenRows

if TYPE_CHECKING:
    from moelab.engine.engine import Engine
    from moelab.store.writer import TraceWriter

FIRST_CAPACITY = 1024
FLUSH_TOKENS = 512  # tokens that a kill may cost; the log is written once per so many
Pending = tuple[int, TokenRows, np.ndarray, np.ndarray]  # a step, its rows, expert ids, gate weights
PENDING_TOKENS = 256  # copied at once: the cost of a NumPy call, not the copy, is what a step would feel


@contextmanager
def record_engine(
    engine: Engine,
    path: str | Path | None = None,
    *,
    domains: Sequence[str] = (),
    keep_text: bool = False,
    licence: str = "not stated",
    provenance: str = "recorded with moelab.record",
    scores: bool | None = None,
    stale_gate: bool | None = None,
) -> Iterator[Trace]:
    """Record everything that `engine` routes inside the block.

    `path`: a new trace folder; then every domain that will occur must be named in `domains`, because the
    header is written first. `keep_text` stores token ids: the user's text. `scores` and `stale_gate` record the router
    scores of all experts (2 L E bytes a token) and what each router would choose a layer early (2 L K bytes): see
    `Trace.extras`. None: where the policy of the engine's fast tier looks at them, so that the run can be replayed;
    a policy that comes later, inside the block, changes nothing. What was recorded before an
    exception in the block is kept. ValueError for a folder that already holds tokens.
    """
    from moelab.store.writer import TraceWriter

    header = header_of(engine, tuple(domains), licence, provenance)
    trace = empty_trace(header)
    writer = TraceWriter(path, header) if path is not None else None
    if writer is not None and writer.num_tokens:
        num_tokens = writer.num_tokens
        writer.close()
        raise ValueError(f"{path}: expected a new trace folder, got one with {num_tokens} tokens; choose another path")
    wishes = {CANDIDATE_SCORES: scores, STALE_GATE: stale_gate}
    extras = tuple(n for n, wish in wishes.items() if wish or (wish is None and n in engine.policy_reads))
    recorder = Recorder(header, keep_text, writer, extras)
    with engine.asking(extras):
        engine.observers.append(recorder.observe)
        try:
            yield trace
        finally:
            engine.observers.remove(recorder.observe)
            fill_trace(trace, recorder.finish())


def header_of(engine: Engine, domains: tuple[str, ...], licence: str, provenance: str) -> TraceHeader:
    """What is true of everything that this engine records."""
    spec = engine.spec
    try:
        release = version("moelab")
    except PackageNotFoundError:  # run from a checkout that is not installed
        release = "from source"
    return TraceHeader(
        model=engine.name,
        model_type=spec.model_type,
        num_layers=len(spec.model_layer_of_layer),
        num_experts=spec.n_routed_experts,
        top_k=spec.num_experts_per_tok,
        native_top_k=spec.num_experts_per_tok,
        model_layer_of_layer=tuple(spec.model_layer_of_layer),
        expert_bytes=(engine.expert_bytes,) * len(spec.model_layer_of_layer),
        hidden_size=spec.hidden_size,
        moe_intermediate_size=spec.moe_intermediate_size,
        gate_weight_kind=gate_weight_kind(spec.norm_topk_prob, spec.routed_scaling_factor),
        slot_order="rank",
        engine=f"moelab {release}: {engine.isa} kernels, {engine.activation} activations, dense {engine.dense_path}"
        + ("" if engine.fast_tier is None else f", fast tier of {engine.fast_tier}")
        + ("" if engine.lossy is None else f", {engine.lossy}"),
        quantization=engine.weight_format,
        licence=licence,
        provenance=f"{provenance}; weights {engine.weights_fingerprint}",
        synthetic=False,
        domains=domains,
        model_fingerprint=spec.fingerprint,
        weights_fingerprint=engine.weights_fingerprint,
    )


def gate_weight_kind(normalised: bool, scaling_factor: float) -> GateWeightKind:
    """What a sigmoid router's weights are, in the words of the trace."""
    if normalised:
        return "normalised_scaled"
    return "sigmoid" if scaling_factor == 1 else "unknown"


class Recorder:
    """The observer: copies ids and weights of each step into its buffers, one block of rows.

    `extras`: the optional arrays that it keeps; the engine must be `asking` for them.
    """

    def __init__(
        self, header: TraceHeader, keep_text: bool, writer: TraceWriter | None, extras: Sequence[str] = ()
    ) -> None:
        self._header = header
        of_token = {CANDIDATE_SCORES: (np.float16, header.num_experts), STALE_GATE: (np.uint16, header.top_k)}
        self._of_extra = {name: of_token[name] for name in extras}
        self._keep_text = keep_text
        self._writer = writer
        self._index_of_domain: dict[str | None, int] = {None: -1} | {n: i for i, n in enumerate(header.domains)}
        self._first_step: int | None = None
        self._num_tokens = 0
        self._pending: list[Pending] = []
        self.num_pending = 0  # tokens that are kept and not yet copied
        self._allocate(FIRST_CAPACITY)

    def _allocate(self, capacity: int) -> None:
        shape = (capacity, self._header.num_layers, self._header.top_k)
        self._experts, self._gate_weights = np.empty(shape, np.uint16), np.empty(shape, np.float16)
        self._table = {name: np.empty(capacity, dtype) for name, dtype in TOKEN_COLUMNS.items()}
        self._extras = {
            name: np.empty((capacity, self._header.num_layers, size), dtype)
            for name, (dtype, size) in self._of_extra.items()
        }

    def _grow(self, capacity: int) -> None:
        experts, gate_weights, tokens, extras = self._batch()
        self._allocate(capacity)
        count = self._num_tokens
        self._experts[:count], self._gate_weights[:count] = experts, gate_weights
        for name, array in extras.items():
            self._extras[name][:count] = array
        for name, column in self._table.items():
            column[:count] = getattr(tokens, name)

    def observe(self, step: int, rows: TokenRows, expert_ids: np.ndarray, gate_weights: np.ndarray) -> None:
        """Called by the engine after each step; what it gives is only kept, and copied for many steps at once."""
        if self._first_step is None:
            self._first_step = step
        for name in rows.domains:  # before anything is kept: a wrong one must not cost the steps that wait
            self._domain(name)
        self._pending.append((step, rows, expert_ids, gate_weights))
        self.num_pending += len(rows)
        if self.num_pending >= PENDING_TOKENS:
            self._drain()
            if self._writer is not None and self._num_tokens >= FLUSH_TOKENS:
                self._flush()

    def _drain(self) -> None:
        """Pending steps into the arrays."""
        pending, self._pending, self.num_pending = self._pending, [], 0
        if not pending:
            return
        _, _, expert_ids, gate_weights = zip(*pending, strict=True)
        columns = self._columns(pending)
        start = self._num_tokens
        stop = start + len(columns["step"])
        if stop > len(self._experts):
            self._grow(max(stop, 2 * len(self._experts)))
        self._experts[start:stop] = np.concatenate(expert_ids, axis=1).transpose(1, 0, 2)
        self._gate_weights[start:stop] = np.concatenate(gate_weights, axis=1).transpose(1, 0, 2)
        for name, array in self._extras.items():
            of_steps = [getattr(rows, name) for _, rows, _, _ in pending]
            array[start:stop] = np.concatenate(of_steps, axis=1).transpose(1, 0, 2)
        for name, column in columns.items():
            self._table[name][start:stop] = column
        self._table["token_id"][start:stop] = (
            np.concatenate([rows.token_id for _, rows, _, _ in pending]) if self._keep_text else NO_TOKEN_ID
        )
        self._num_tokens = stop

    def _columns(self, pending: list[Pending]) -> dict[str, list[int]]:
        """Columns of the token table, an entry for each row, as lists: arrays of single steps would cost more."""
        columns: dict[str, list[int]] = {name: [] for name in ("step", "request", "position", "phase", "domain")}
        for step, rows, _, _ in pending:
            count, num_queries = len(rows), rows.token_ids.shape[1]
            columns["step"] += [step - (self._first_step or 0)] * count
            columns["phase"] += [int(rows.phase)] * count
            ids = [self._domain(name) for name in rows.domains]
            if num_queries == 1:
                columns["request"] += rows.requests
                columns["position"] += rows.starts
                columns["domain"] += ids
            else:
                columns["request"] += rows.request.tolist()
                columns["position"] += rows.position.tolist()
                columns["domain"] += [each for each in ids for _ in range(num_queries)]
        return columns

    def _domain(self, name: str | None) -> int:
        if name not in self._index_of_domain:
            if self._writer is not None:
                raise ValueError(
                    f"domain: expected one of {', '.join(self._header.domains) or 'none'} (the header is written), "
                    f"got {name!r}; name it in record(..., domains=...)"
                )
            self._index_of_domain[name] = len(self._index_of_domain) - 1
        return self._index_of_domain[name]

    def _batch(self) -> tuple[np.ndarray, np.ndarray, TokenTable, dict[str, np.ndarray]]:
        count = self._num_tokens
        columns = {name: column[:count] for name, column in self._table.items()}
        extras = {name: array[:count] for name, array in self._extras.items()}
        return self._experts[:count], self._gate_weights[:count], TokenTable(**columns), extras

    def _flush(self) -> None:
        assert self._writer is not None
        experts, gate_weights, tokens, extras = self._batch()
        self._writer.append(experts, gate_weights, tokens, **extras)
        self._num_tokens = 0

    def finish(self) -> Trace:
        """The whole trace; the folder, if any, is complete on disk."""
        if self._writer is not None:
            try:
                self._drain()
                self._flush()
            finally:
                self._writer.close()
            return _read(self._writer.path)
        self._drain()
        experts, gate_weights, tokens, extras = self._batch()
        kept = {name: array.copy() for name, array in extras.items()}
        domains = tuple(name for name in self._index_of_domain if name is not None)
        header = self._header.model_copy(update={"domains": domains})
        columns = {name: getattr(tokens, name).copy() for name in TOKEN_COLUMNS}
        return Trace(header, experts.copy(), gate_weights.copy(), TokenTable(**columns), kept)


def empty_trace(header: TraceHeader) -> Trace:
    shape = (0, header.num_layers, header.top_k)
    table = TokenTable.build(step=[], request=[], position=[], phase=[])
    return Trace(header, np.empty(shape, np.uint16), np.empty(shape, np.float16), table)


def fill_trace(trace: Trace, complete: Trace) -> None:
    """Give the frozen trace that the block holds its content: the one moment when a Trace changes."""
    for name in ("header", "experts", "gate_weights", "tokens", "extras"):
        object.__setattr__(trace, name, getattr(complete, name))


def _read(path: Path) -> Trace:
    from moelab.store import open_trace

    return open_trace(path).load()
