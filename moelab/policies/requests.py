"""Requests: a trace as policies see it, one set request per (step, layer).  Floor 1.

The grid is dense: request ``r`` is layer ``r % L`` of the ``r // L``-th step, also where that layer
routed nothing, so that the clock of a live engine and of the simulator agree. Knows sets, counts,
flags and next uses; does not know residency or policies. It lies on this floor because the
simulator, the analysis and the live engine stand on it and rooms of one floor do not meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np
from numba import types

from moelab.compiled_on_use import on_use
from moelab.domain.trace import NO_EXPERT, Phase, Trace
from moelab.policies.compiled import inlined
from moelab.policies.signature import FLAG_DECODE, FLAG_PREFILL, FLAG_REQUEST_ENDED, FLAG_REQUEST_STARTS, NEVER

if TYPE_CHECKING:
    import pandas as pd

PHASES: dict[str, int] = {"prefill": FLAG_PREFILL, "decode": FLAG_DECODE, "mixed": FLAG_PREFILL | FLAG_DECODE}
"""Phase of a step by its flags. A step that holds tokens of both phases is ``mixed`` and counts as neither."""

FLOAT_OF_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""float32 [65536]: the value of every float16 by its bits."""

_i64 = types.int64
_laying = RLock()  # threads of a sweep share one ``Requests``: what is derived from it is built once


@dataclass(frozen=True, eq=False)
class Requests:
    """Set requests of a trace in CSR form; R = S * L requests, N entries.

    ``offsets`` int64 [R + 1]; ``experts`` int32 [N] distinct per request, in order of their LAST appearance
    token by token, rank by rank; ``token_counts`` int32 [N]; ``gate_sums`` float32 [N]. Per step:
    ``step`` int64 [S] the trace's number, ``first_token`` int64 [S + 1] its token rows, ``flags`` int64 [S].
    """

    num_layers: int
    num_experts: int
    offsets: np.ndarray
    experts: np.ndarray
    token_counts: np.ndarray
    gate_sums: np.ndarray
    step: np.ndarray
    first_token: np.ndarray
    flags: np.ndarray

    @classmethod
    def of_trace(cls, trace: Trace) -> Requests:
        """Group a trace's tokens by step; a slot with ``NO_EXPERT`` takes no part."""
        tokens, (num_tokens, num_layers, top_k) = trace.tokens, trace.shape
        starts = np.flatnonzero(np.diff(tokens.step, prepend=tokens.step[:1] - 1))
        first_token = np.append(starts, num_tokens).astype(np.int64)
        num_steps = len(starts)
        flags = np.zeros(num_steps, np.int64)
        if num_steps:
            step_of_token = np.repeat(np.arange(num_steps), np.diff(first_token))
            flags[step_of_token[tokens.phase == Phase.PREFILL]] |= FLAG_PREFILL
            flags[step_of_token[tokens.phase == Phase.DECODE]] |= FLAG_DECODE
            _, first = np.unique(tokens.request, return_index=True)
            _, last = np.unique(tokens.request[::-1], return_index=True)
            flags[step_of_token[first]] |= FLAG_REQUEST_STARTS
            ended = step_of_token[num_tokens - 1 - last] + 1
            flags[ended[ended < num_steps]] |= FLAG_REQUEST_ENDED
        offsets = np.zeros(num_steps * num_layers + 1, np.int64)
        experts = np.empty(num_tokens * num_layers * top_k, np.int32)
        token_counts, gate_sums = np.empty_like(experts), np.empty(len(experts), np.float32)
        num_entries = _build(
            np.ascontiguousarray(trace.experts),
            np.ascontiguousarray(trace.gate_weights).view(np.uint16),
            FLOAT_OF_HALF,
            first_token,
            trace.header.num_experts,
            offsets,
            experts,
            token_counts,
            gate_sums,
        )
        entries = slice(0, num_entries)
        return cls(
            num_layers=num_layers,
            num_experts=trace.header.num_experts,
            offsets=offsets,
            experts=experts[entries],
            token_counts=token_counts[entries],
            gate_sums=gate_sums[entries],
            step=tokens.step[starts],
            first_token=first_token,
            flags=flags,
        )

    @property
    def num_steps(self) -> int:
        return len(self.step)

    @property
    def num_requests(self) -> int:
        return len(self.offsets) - 1

    @property
    def set_sizes(self) -> np.ndarray:
        """int64 [S, L]: distinct experts of each request."""
        return np.diff(self.offsets).reshape(self.num_steps, self.num_layers)

    def steps_of_phase(self, phase: str | None) -> np.ndarray:
        """bool [S]: steps of a phase by name (``prefill``, ``decode``, ``mixed``), all for ``None``."""
        if phase is None:
            return np.ones(self.num_steps, bool)
        if phase not in PHASES:
            raise ValueError(f"phase is {phase!r}, expected one of {', '.join(PHASES)}")
        return (self.flags & PHASES["mixed"]) == PHASES[phase]

    @cached_property
    def _uses(self) -> tuple[np.ndarray, np.ndarray]:
        next_use = np.empty(len(self.experts), np.int64)
        first_use = np.full((self.num_layers, self.num_experts), NEVER, np.int64)
        _find_next_uses(self.offsets, self.experts, self.num_layers, next_use, first_use)
        return next_use, first_use

    @property
    def next_use(self) -> np.ndarray:
        """int64 [N]: when the same layer next uses the same expert: ``clock * E + place``, else ``NEVER``.

        ``place`` orders the siblings of that later request by their own next uses, so that of two experts
        that return together the one that then returns sooner counts as sooner. MIN needs it: the one it
        keeps is pinned there and stays.
        """
        return self._uses[0]

    @property
    def first_use(self) -> np.ndarray:
        """int64 [L, E]: first use of each expert in the form of ``next_use``, else ``NEVER``."""
        return self._uses[1]

    def by_layer(self) -> RequestsByLayer:
        """The same requests lying layer by layer; built once, whichever thread asks first."""
        with _laying:
            return self._by_layer

    @cached_property
    def _by_layer(self) -> RequestsByLayer:
        return RequestsByLayer(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per distinct expert of each request."""
        import pandas as pd

        clock = np.repeat(np.arange(self.num_requests), np.diff(self.offsets))
        columns = {
            "clock": clock,
            "step": self.step[clock // self.num_layers],
            "layer": clock % self.num_layers,
            "expert": self.experts,
            "tokens": self.token_counts,
            "gate_sum": self.gate_sums,
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        return (
            f"Requests({self.num_steps} steps x {self.num_layers} layers, {len(self.experts)} distinct experts used, "
            f"largest set {int(self.set_sizes.max(initial=0))})"
        )


class RequestsByLayer:
    """Requests in the order of a replay that goes through one layer after the other: all steps of layer 0, then of 1.

    Why copies: a stride over the requests of one layer cost more than the nearness of that layer's state gained.
    ``offsets`` int64 [R + 1] with request ``layer * S + step``; the other arrays as in ``Requests``.
    """

    def __init__(self, requests: Requests):
        self.offsets = np.zeros(requests.num_requests + 1, np.int64)
        np.cumsum(requests.set_sizes.T.ravel(), out=self.offsets[1:])
        self._requests = requests
        self.experts = self._laid(requests.experts)
        self.token_counts = self._laid(requests.token_counts)
        self.gate_sums = self._laid(requests.gate_sums)

    @property
    def next_use(self) -> np.ndarray:
        """int64 [N]: see ``Requests.next_use``; its values stay clocks."""
        with _laying:
            return self._next_use

    @cached_property
    def _next_use(self) -> np.ndarray:
        return self._laid(self._requests.next_use)

    def _laid(self, values: np.ndarray) -> np.ndarray:
        out = np.empty_like(values)
        _lay(self._requests.offsets, self._requests.num_layers, self.offsets, values, out)
        return out


_build_signature = _i64(
    types.Array(types.uint16, 3, "C", readonly=True),
    types.Array(types.uint16, 3, "C", readonly=True),
    types.float32[::1],
    _i64[::1],
    _i64,
    _i64[::1],
    types.int32[::1],
    types.int32[::1],
    types.float32[::1],
)


@inlined
def gather_request(
    experts, half_weights, float_of_half, begin, end, layer, stamp, seen_at, backwards, place_of_expert, used, out,
    token_counts, gate_sums,
):  # fmt: skip
    """One request: layer ``layer`` of the tokens [begin, end), from ``used`` on; return the number of its experts.

    ``stamp`` is a number that no earlier request had in ``seen_at`` [E]; ``backwards`` and ``place_of_expert`` int64
    [E] are buffers.
    """
    top_k = experts.shape[2]
    size = 0
    for token in range(end - 1, begin - 1, -1):
        for rank in range(top_k - 1, -1, -1):
            expert = experts[token, layer, rank]
            if expert != NO_EXPERT and seen_at[expert] != stamp:
                seen_at[expert] = stamp
                backwards[size] = expert
                size += 1
    for i in range(size):
        expert = backwards[size - 1 - i]
        place_of_expert[expert] = used + i
        out[used + i] = expert
        token_counts[used + i] = 0
        gate_sums[used + i] = 0
    for token in range(begin, end):
        for rank in range(top_k):
            expert = experts[token, layer, rank]
            if expert != NO_EXPERT:
                token_counts[place_of_expert[expert]] += 1
                gate_sums[place_of_expert[expert]] += float_of_half[half_weights[token, layer, rank]]
    return size


@on_use(_build_signature)
def _build(experts, half_weights, float_of_half, first_token, num_experts, offsets, out, token_counts, gate_sums):
    """Fill the CSR arrays; return the number of entries."""
    num_layers = experts.shape[1]
    place_of_expert = np.zeros(num_experts, np.int64)
    seen_at = np.full(num_experts, -1, np.int64)
    backwards = np.zeros(num_experts, np.int64)
    request = 0
    used = 0
    for step in range(len(first_token) - 1):
        for layer in range(num_layers):
            used += gather_request(
                experts, half_weights, float_of_half, first_token[step], first_token[step + 1], layer, request,
                seen_at, backwards, place_of_expert, used, out, token_counts, gate_sums,
            )  # fmt: skip
            request += 1
            offsets[request] = used
    return used


_lay_signatures = [
    types.void(_i64[::1], _i64, _i64[::1], kind[::1], kind[::1]) for kind in (types.int32, types.float32, _i64)
]


@on_use(_lay_signatures)
def _lay(offsets, num_layers, new_offsets, values, out):
    """Entries of requests in order of time into requests layer by layer."""
    num_steps = (len(offsets) - 1) // num_layers
    for layer in range(num_layers):
        for step in range(num_steps):
            begin, start = offsets[step * num_layers + layer], new_offsets[layer * num_steps + step]
            for i in range(new_offsets[layer * num_steps + step + 1] - start):
                out[start + i] = values[begin + i]


@on_use(types.void(_i64[::1], types.int32[::1], _i64, _i64[::1], _i64[:, ::1]))
def _find_next_uses(offsets, experts, num_layers, next_use, first_use):
    """Backward pass; ``first_use`` [L, E] comes in as ``NEVER`` and leaves as the first use."""
    num_experts = first_use.shape[1]
    order = np.zeros(num_experts, np.int64)
    for request in range(len(offsets) - 2, -1, -1):
        layer = request % num_layers
        begin, end = offsets[request], offsets[request + 1]
        for i in range(begin, end):
            next_use[i] = first_use[layer, experts[i]]
            place = i - begin  # stable insertion by next use
            while place > 0 and next_use[order[place - 1]] > next_use[i]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = i
        for place in range(end - begin):
            first_use[layer, experts[order[place]]] = request * num_experts + place
