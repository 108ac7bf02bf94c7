"""Trace: which experts each token used, in order, and the token table beside it.

Knows shapes, sentinels and meanings. Does not know files (``moelab.store``), foreign formats
(``moelab.formats``) or statistics (``moelab.analysis``). Floor 0: NumPy and pydantic only.

Shapes: ``experts`` uint16 [T, L, K] and ``gate_weights`` float16 [T, L, K]; an unrouted slot is
``NO_EXPERT`` with gate weight 0. L counts MoE layers; ``model_layer_of_layer`` maps them to the
model's own layer numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from moelab.domain.summary import summary_html, summary_text

if TYPE_CHECKING:
    import pandas as pd

NO_EXPERT = 65535
"""Sentinel of ``experts``: this slot was not routed (dropped, variable K, last layer of a prefill)."""

NO_TOKEN_ID = -1
"""Sentinel of ``TokenTable.token_id``: the text of this token was not recorded."""

CANDIDATE_SCORES, STALE_GATE, RESIDENCY = "candidate_scores", "stale_gate_experts", "residency"
"""Names of optional arrays: see ``Trace.extras``."""

GateWeightKind = Literal[
    "softmax_over_all",  # softmax over all E, not renormalised over the selected K
    "softmax_over_selected",  # softmax over the K selected (gpt-oss), sums to 1
    "normalised",  # divided by their sum, not scaled
    "normalised_scaled",  # divided by their sum, times routed_scaling_factor (DeepSeek-V3, K2)
    "sigmoid",  # unbiased sigmoid score, neither normalised nor scaled
    "selection_score",  # the biased score that chose the expert, not a multiplier
    "unknown",
]
SlotOrder = Literal["rank", "ascending", "unknown"]


class Phase(IntEnum):
    """What kind of forward pass a token was part of."""

    PREFILL = 0
    DECODE = 1


class TraceHeader(BaseModel):
    """What is true of the whole trace; one JSON document.

    ``expert_bytes`` is the size of one expert of each layer in the engine that was recorded (L
    integers, bytes), 0 where unknown. ``native_top_k`` differs from ``top_k`` only where the engine
    overrode the model's own K. ``model_fingerprint`` is of the architecture, ``weights_fingerprint`` of the weights
    that routed; ``None`` where the recorder did not say it (traces of before this field, other engines).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model: str
    model_type: str
    num_layers: int = Field(ge=1)
    num_experts: int = Field(ge=1, lt=NO_EXPERT)
    top_k: int = Field(ge=1)
    native_top_k: int | None = None
    model_layer_of_layer: tuple[int, ...]
    expert_bytes: tuple[int, ...]
    hidden_size: int | None = None
    moe_intermediate_size: int | None = None
    gate_weight_kind: GateWeightKind = "unknown"
    slot_order: SlotOrder = "rank"
    engine: str
    quantization: str
    licence: str
    provenance: str
    synthetic: bool
    domains: tuple[str, ...] = ()
    model_fingerprint: str | None = None
    weights_fingerprint: str | None = None

    @model_validator(mode="after")
    def _lengths(self) -> TraceHeader:
        for name in ("model_layer_of_layer", "expert_bytes"):
            got = len(getattr(self, name))
            if got != self.num_layers:
                raise ValueError(
                    f"{name} has {got} entries, expected num_layers = {self.num_layers}: "
                    "give one entry for each MoE layer"
                )
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, expected at most num_experts = {self.num_experts}")
        return self

    def select_layers(self, layers: Sequence[int]) -> TraceHeader:
        """Header of some MoE layers, in the given order; raises ``ValueError`` for one that is not there."""
        wrong = [layer for layer in layers if not 0 <= layer < self.num_layers]
        if wrong or not len(layers):
            raise ValueError(f"layers {list(layers)}, expected one or more of 0 to {self.num_layers - 1}")
        chosen = {
            "num_layers": len(layers),
            "model_layer_of_layer": tuple(self.model_layer_of_layer[layer] for layer in layers),
            "expert_bytes": tuple(self.expert_bytes[layer] for layer in layers),
        }
        return TraceHeader.model_validate(self.model_dump() | chosen)


@dataclass(frozen=True)
class TokenTable:
    """One row for each token, all arrays of length T.

    ``step`` int64: the forward pass the token was part of, never decreasing, so that batches,
    prefill chunks and unions can be rebuilt. ``request`` int32, ``position`` int32 within the
    request, ``phase`` uint8 (``Phase``), ``domain`` int16 index into ``TraceHeader.domains`` or -1,
    ``token_id`` int32 or ``NO_TOKEN_ID`` (it is the user's text, so it is optional).
    """

    step: np.ndarray
    request: np.ndarray
    position: np.ndarray
    phase: np.ndarray
    domain: np.ndarray
    token_id: np.ndarray

    @classmethod
    def build(
        cls,
        *,
        step: Any,
        request: Any,
        position: Any,
        phase: Any,
        domain: Any = None,
        token_id: Any = None,
    ) -> TokenTable:
        """Table from any integer sequences; scalars are broadcast to the length of ``step``."""
        num_tokens = len(step)

        def column(values: Any, dtype: Any, absent: int) -> np.ndarray:
            if values is None:
                values = absent
            return np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype), num_tokens))

        return cls(
            step=column(step, np.int64, 0),
            request=column(request, np.int32, 0),
            position=column(position, np.int32, 0),
            phase=column(phase, np.uint8, 0),
            domain=column(domain, np.int16, -1),
            token_id=column(token_id, np.int32, NO_TOKEN_ID),
        )

    def __len__(self) -> int:
        return len(self.step)

    def take(self, rows: Any) -> TokenTable:
        """The rows selected by a slice, index array or boolean mask."""
        return TokenTable(**{name: getattr(self, name)[rows] for name in TOKEN_COLUMNS})

    @classmethod
    def concatenate(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """Tables one after the other, in the given order."""
        return cls(**{n: np.concatenate([getattr(t, n) for t in tables]) for n in TOKEN_COLUMNS})


TOKEN_COLUMNS: dict[str, Any] = {
    "step": np.int64,
    "request": np.int32,
    "position": np.int32,
    "phase": np.uint8,
    "domain": np.int16,
    "token_id": np.int32,
}


@dataclass(frozen=True)
class Trace:
    """A whole trace in memory, checked at construction.

    Raises ``ValueError`` where shapes, dtypes, ids or steps contradict the header. ``extras`` holds
    optional per-token arrays by name, first axis T: ``candidate_scores`` float16 [T, L, E], the scores that rank the
    experts, of the layer's router alone (recorded here: sigmoid plus bias, less the layer's smallest bias, so that none
    is negative); ``stale_gate_experts`` uint16 [T, L, K], what the layer's router would choose on the hidden state of
    the MoE layer before (``NO_EXPERT`` in the first); ``residency`` uint8 [T, L, K].
    """

    header: TraceHeader
    experts: np.ndarray
    gate_weights: np.ndarray
    tokens: TokenTable
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        header = self.header
        num_tokens = len(self.tokens)
        expected = (num_tokens, header.num_layers, header.top_k)
        for name, dtype in (("experts", np.uint16), ("gate_weights", np.float16)):
            array = getattr(self, name)
            if array.shape != expected or array.dtype != dtype:
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} [T, L, K] = "
                    f"{expected}: reshape it or mend the header"
                )
        highest = _highest_id(self.experts)
        if highest >= header.num_experts:
            raise ValueError(
                f"experts holds id {highest}, expected ids below "
                f"num_experts = {header.num_experts} or NO_EXPERT = {NO_EXPERT}"
            )
        if num_tokens and (np.diff(self.tokens.step) < 0).any():
            raise ValueError("step decreases, expected token rows in the order of forward passes")
        for name, array in self.extras.items():
            if array.shape[0] != num_tokens:
                raise ValueError(f"extra array {name} has {array.shape[0]} rows, expected {num_tokens}")

    @classmethod
    def from_arrays(cls, experts: Any, gate_weights: Any = None, **about: Any) -> Trace:
        """A trace of arrays that somebody else recorded: arguments and errors of ``moelab.trace_of_arrays``."""
        from moelab.domain.trace_of_arrays import ARGUMENTS, trace_of_arrays

        if unknown := sorted(set(about) - set(ARGUMENTS)):
            raise TypeError(f"from_arrays knows no {', '.join(unknown)}; expected of {', '.join(ARGUMENTS)}")
        return trace_of_arrays(experts, gate_weights, **about)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, L, K)."""
        return (self.num_tokens, self.header.num_layers, self.header.top_k)

    def take(self, rows: Any) -> Trace:
        """Trace of some rows (slice, index array in rising order, or boolean mask)."""
        return replace(
            self,
            experts=np.ascontiguousarray(self.experts[rows]),
            gate_weights=np.ascontiguousarray(self.gate_weights[rows]),
            tokens=self.tokens.take(rows),
            extras={name: array[rows] for name, array in self.extras.items()},
        )

    def phase(self, phase: Phase) -> Trace:
        """Only the tokens of one phase."""
        return self.take(self.tokens.phase == int(phase))

    def requests(self, ids: Any) -> Trace:
        """Only the tokens of some requests: the unit of a train/test split."""
        return self.take(np.isin(self.tokens.request, ids))

    def loads(self) -> np.ndarray:
        """Load of each expert: routings [L, E] int64."""
        num_layers, num_experts = self.header.num_layers, self.header.num_experts
        loads = np.zeros((num_layers, num_experts), np.int64)
        for layer in range(num_layers):
            ids = self.experts[:, layer, :].ravel()
            loads[layer] = np.bincount(ids[ids != NO_EXPERT], minlength=num_experts)
        return loads

    def digest(self) -> str:
        """sha256, 64 hexadecimal digits, of everything in the trace that a policy, planner or simulation can see.

        The header without provenance and checksum of the weights, experts, gate weights, the step, request and phase
        of each token, and every extra array (candidate scores, stale gates, residency). Not: positions, domains and
        token ids, which decide nothing.
        """
        digest = self._seen_by_static_plans()
        for name, array in [("gate_weights", self.gate_weights), *sorted(self.extras.items())]:
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """``2-`` and the first 16 digits of ``digest``: what a plan keeps of the trace that it was made on."""
        return fingerprint_of(self.digest())

    def has_fingerprint(self, fingerprint: str | None) -> bool:
        """Was this fingerprint made of this trace? Version 1, 16 digits, left out gate weights and extra arrays."""
        if fingerprint is None or fingerprint.startswith("2-"):
            return fingerprint == self.fingerprint()
        return fingerprint == self._seen_by_static_plans().hexdigest()[:16]

    def _seen_by_static_plans(self) -> hashlib._Hash:
        digest = hashlib.sha256()
        digest.update(self.header.model_dump_json(exclude={"provenance", "weights_fingerprint"}).encode())
        for array in (self.experts, self.tokens.step, self.tokens.request, self.tokens.phase):
            digest.update(np.ascontiguousarray(array).data)
        return digest

    def to_frame(self) -> pd.DataFrame:
        """One row for each routed (token, layer, slot); columns of the token table repeated."""
        import pandas as pd

        token, layer, slot = np.nonzero(self.experts != NO_EXPERT)
        columns: dict[str, Any] = {n: getattr(self.tokens, n)[token] for n in TOKEN_COLUMNS}
        columns |= {
            "token": token,
            "layer": layer,
            "slot": slot,
            "expert": self.experts[token, layer, slot],
            "gate_weight": self.gate_weights[token, layer, slot].astype(np.float32),  # pandas cannot print float16
        }
        return pd.DataFrame(columns)

    def summary(self) -> dict[str, Any]:
        """What ``repr`` and ``_repr_html_`` show; plain values."""
        return summarise(self.header, self.tokens)

    def __repr__(self) -> str:
        return summary_text("Trace", self.summary())

    def _repr_html_(self) -> str:
        return summary_html("Trace", self.summary())


def fingerprint_of(digest: str) -> str:
    """``Trace.fingerprint`` of the trace with this ``digest``, for those who have it already."""
    return f"2-{digest[:16]}"


def _highest_id(experts: np.ndarray) -> int:
    """Largest id that is not ``NO_EXPERT``, -1 without one; a piece at a time, for traces of gigabytes."""
    highest = -1
    for start in range(0, len(experts), 16_384):
        # NO_EXPERT is the largest uint16, so adding 1 wraps it to 0 and leaves the order of all others.
        highest = max(highest, int((experts[start : start + 16_384] + np.uint16(1)).max()) - 1)
    return highest


def summarise(header: TraceHeader, tokens: TokenTable) -> dict[str, Any]:
    """What a trace shows of itself, in memory or on disk; plain values."""
    decode = int((tokens.phase == Phase.DECODE).sum())
    return {
        "model": header.model,
        "routing": "synthetic" if header.synthetic else "recorded",
        "tokens": len(tokens),
        "decode tokens": decode,
        "prefill tokens": len(tokens) - decode,
        "requests": len(np.unique(tokens.request)),
        "steps": len(np.unique(tokens.step)),
        "domains": ", ".join(header.domains) or "none",
        "layers x experts, top-k": f"{header.num_layers} x {header.num_experts}, {header.top_k}",
        "gate weights": header.gate_weight_kind,
        "engine": header.engine,
        "quantisation": header.quantization,
        "licence": header.licence,
    }
