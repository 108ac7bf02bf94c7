"""PolicySession: one policy asked request by request, where no trace says beforehand what will come.  Floor 1.

The live engine and the shadows stand on it; the simulator's loop asks the same compiled function through the same
contract (``open_request``, ``decide``, ``close_request``) and the same grouping (``gather_request``), so both see the
same requests. Gate weights are rounded to float16 first, as a trace keeps them. Does not know engines, copies or time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from moelab.compiled_on_use import on_use
from moelab.domain.plan import Plan
from moelab.policies import POLICIES, Policy
from moelab.policies.contract import close_request, contract_error, open_request
from moelab.policies.counts import EVICTIONS, HITS, MISSES, NUM_COLUMNS, PREFETCHES, ROUTED_HITS, ROUTINGS, UPLOADS
from moelab.policies.optional_arrays import read_scores, read_stale
from moelab.policies.policy import PolicyState
from moelab.policies.requests import FLOAT_OF_HALF, gather_request
from moelab.policies.signature import ADMIT, EVICT, FIELDS, FLAG_OVERFLOW, PREFETCH
from moelab.policies.view import call_decide, decide_address, view_at


class PolicySession:
    """The plan's policy (or ``policy``), its state, and the answer to the last request.

    After ``ask``: ``experts`` int32 [M] of the request, ``hits`` int32 places in it, ``counts`` int64 [8] (columns in
    ``policies.counts``), ``evict`` [*, 2] (layer, expert), ``admit`` [*] experts and ``prefetch`` [*, 2] (layer,
    expert); all are buffers that the next call overwrites. Policies move experts in and out of the first fast tier;
    what lies on the others stays.

    Raises ``ValueError`` for an oracle, which needs the future, and where the plan does not fit the policy.
    """

    def __init__(self, plan: Plan, policy: Policy | None = None) -> None:
        if policy is None and plan.policy.name not in POLICIES:
            raise ValueError(f"plan asks for policy {plan.policy.name}, expected one of {', '.join(POLICIES)}")
        self.policy = policy or POLICIES[plan.policy.name]
        if self.policy.needs_next_use:
            online = ", ".join(name for name, each in POLICIES.items() if not each.needs_next_use)
            raise ValueError(
                f"policy {self.policy.name} is an oracle: it needs the future, which nobody knows while a model runs; "
                f"expected one of {online}, or simulate it on a recorded trace"
            )
        if not plan.fast_tiers:
            raise ValueError("plan has no fast tier; expected one or more: re-plan with fast0")
        self.state = PolicyState.of_plan(plan, self.policy)
        self.view = self.state.view()
        # By address: Numba needs 200 us to look at a function and a view that come as arguments from Python.
        self._decide, self._view = decide_address(self.policy.decide), self.view.address
        self.clock = 0
        num_experts = plan.model.num_experts
        self._overflow = FLAG_OVERFLOW if self.state.overflow else 0
        self._seen_at = np.full(num_experts, -1, np.int64)
        self._backwards, self._place = np.zeros((2, num_experts), np.int64)
        self._experts, self._token_counts, self._hits, self._misses = np.zeros((4, num_experts), np.int32)
        self._gate_sums = np.zeros(num_experts, np.float32)
        self._scores = np.zeros((0, num_experts), np.float32)
        self._stale, self._stale_at = np.zeros(num_experts, np.int32), np.full(num_experts, -1, np.int64)
        self._where = np.zeros(5, np.int64)
        self.counts = np.zeros(NUM_COLUMNS, np.int64)

    @property
    def num_layers(self) -> int:
        return self.state.resident.shape[0]

    def ask(
        self, expert_ids: np.ndarray, gate_weights: np.ndarray, *, layer: int, step: int, flags: int, place: int = 0,
        candidate_scores: np.ndarray | None = None, stale_experts: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """The next request: ``expert_ids`` uint16, ``gate_weights`` float16 [T, P, K] in C order, of which ``place``.

        ``flags``: those of ``signature`` for this step. ``candidate_scores``: float16 [T, E] of this layer,
        ``stale_experts``: uint16 [T, K], what the stale gate names for the next one; ``None``: not known.
        Raises ``PolicyContractError`` where the policy does what it may not; the session is then of no use.
        """
        scores = _NOTHING if candidate_scores is None else _in_place(candidate_scores, np.float16).view(np.uint16)
        if len(scores) > len(self._scores):
            self._scores = np.zeros((len(scores), scores.shape[2]), np.float32)
        stale = _NOTHING if stale_experts is None else _in_place(stale_experts, np.uint16)
        rule = _ask(
            self._decide, self._view, self.clock, step, layer, flags | self._overflow, place, expert_ids,
            gate_weights.view(np.uint16), FLOAT_OF_HALF, scores, self._scores, stale, self._stale, self._stale_at,
            self._seen_at, self._backwards, self._place, self._experts,
            self._token_counts, self._gate_sums, self._hits, self._misses, self.counts, self._where,
        )  # fmt: skip
        if rule:
            raise contract_error(self.policy.name, rule, self._where, step)
        self.clock += 1

    @property
    def experts(self) -> np.ndarray:
        return self._experts[: self.counts[HITS] + self.counts[MISSES]]

    @property
    def hits(self) -> np.ndarray:
        return self._hits[: self.counts[HITS]]

    @property
    def evict(self) -> np.ndarray:
        return self.view.arrays["evict"][: self.counts[EVICTIONS]]

    @property
    def admit(self) -> np.ndarray:
        return self.view.arrays["admit"][: self.counts[UPLOADS], 0]

    @property
    def prefetch(self) -> np.ndarray:
        return self.view.arrays["prefetch"][: self.counts[PREFETCHES], :2]


_NOTHING = np.zeros((0, 0, 0), np.uint16)


def _in_place(rows: np.ndarray, dtype: type) -> np.ndarray:
    """[T, X] -> [T, 1, X] in C order."""
    return np.ascontiguousarray(rows, dtype)[:, None]


_i64 = types.int64
_halves = types.Array(types.uint16, 3, "C", readonly=True)
_signature = _i64(
    _i64, _i64, _i64, _i64, _i64, _i64, _i64, _halves, _halves, types.float32[::1], _halves,
    FIELDS["candidate_scores"], _halves, FIELDS["stale_experts"], _i64[::1], _i64[::1], _i64[::1], _i64[::1],
    FIELDS["experts"], FIELDS["token_counts"], FIELDS["gate_sums"], FIELDS["hits"], FIELDS["misses"], _i64[::1],
    _i64[::1],
)  # fmt: skip


@on_use(_signature, _nrt=False)
def _ask(
    decide, view_address, clock, step, layer, flags, place, expert_ids, half_weights, float_of_half, half_scores,
    scores, stale, stale_buffer, stale_at, seen_at, backwards, place_of_expert, experts, token_counts, gate_sums, hits,
    misses, counts, where,
):  # fmt: skip
    """Group, ask, check, apply, count; return 0 or the number of the broken rule."""
    view: Any = view_at(view_address)  # type: ignore[call-arg]
    size = gather_request(
        expert_ids, half_weights, float_of_half, 0, len(expert_ids), place, clock, seen_at, backwards,
        place_of_expert, 0, experts, token_counts, gate_sums,
    )  # fmt: skip
    view.clock = clock
    view.step = step
    view.layer = layer
    view.flags = flags
    view.experts = experts[:size]
    view.token_counts = token_counts[:size]
    view.gate_sums = gate_sums[:size]
    view.candidate_scores = scores[: read_scores(half_scores, float_of_half, 0, len(half_scores), 0, scores)]
    num_stale = read_stale(stale, 0, len(stale), 0, clock, len(stale_buffer), stale_buffer, stale_at)
    view.stale_experts = stale_buffer[:num_stale]
    open_request(view, hits, misses)
    num_misses, routings, missed = len(view.misses), 0, 0
    for i in range(size):
        routings += token_counts[i]
    for j in range(num_misses):
        missed += token_counts[misses[j]]
    call_decide(decide, view)
    num_out = view.num_out
    counts[HITS] = size - num_misses
    counts[MISSES] = num_misses
    counts[UPLOADS] = num_out[ADMIT]
    counts[PREFETCHES] = num_out[PREFETCH]
    counts[EVICTIONS] = num_out[EVICT]
    counts[ROUTED_HITS] = routings - missed
    counts[ROUTINGS] = routings
    return close_request(view, where)
