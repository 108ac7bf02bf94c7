"""The one signature of a policy, ``decide(view)``, and the constants that policies and callers share.  Floor 1.

One call is one *request*: everything that one layer routes in one step (forward pass). The policy
sees the SET of distinct experts and answers which of the missing ones to admit, which residents to
evict and what to prefetch. It does not know wall time, copies in flight, or the engine; it never
changes residency itself. The caller (``contract``: ``open_request`` before, ``close_request`` after; used by the
simulator's loop and by the live engine alike) applies the answer in the order evict, admit, prefetch and
checks the rules.

Why one first-class type (``numba.types.FunctionType``): the replay loop takes the policy as a typed
function value, so it compiles once for all policies and is cached on disk; an ordinary jitted
argument would recompile it for every policy and process. Why one pointer: see ``view``.

Fields of the view (int64 unless said; arrays are C-contiguous; a policy writes only its state and its answers):

``clock``             logical time: index of this request in its stream, counted over all layers.
``step``              the forward pass, as the trace numbers it (Least-Stale: "touched in this pass").
``layer``             MoE layer of this request.
``flags``             sum of the ``FLAG_*`` bits below.
``upload_budget``     admits + prefetches allowed in this call, ``UNLIMITED`` without a budget.
``experts``           int32 [M] distinct experts in order of their last appearance, token by token, rank by
                      rank (at batch 1: by rank). The order is fixed because it breaks ties, and it is
                      the order in which a recorded engine's LRU was seen to touch them. M may be 0.
``hits``, ``misses``  int32 [*] places in ``experts`` of those that are on a fast tier and of those that are not.
``token_counts``      int32 [M] routings of each (1 at batch 1; prefill and DALI-like scores need it).
``gate_sums``         float32 [M] sum of the recorded float16 gate weights, added in token order (LHU).
``next_use``          int64 [M] when this layer next uses the expert, ``NEVER`` if it does not: clock of that
                      request times E, plus a place that orders the experts returning together by
                      their own next uses (so ``// E`` is the clock and the order is total); only
                      for oracles (``Policy.needs_next_use``), else length 0.
``candidate_scores``  float32 [B, E] router scores of each token of the request (MRS keeps the p
                      largest of each token), [0, 0] where the trace has none.
``stale_experts``     int32 [*] distinct experts that the gate of layer + 1 chooses on the hidden
                      state of this layer (stale-gate prefetch), length 0 where not recorded.
``resident``          int8 [L, E]: 0 not on a fast tier, else tier index + 1; plus ``IN_USE`` while a request that
                      uses the expert is decided. Logical: what was admitted at one request counts from
                      the next request of its layer.
``pinned``            bool [L, E]: what the plan pinned; never to be evicted.
``expert_bytes``      [1 + F, L] bytes of one expert: row 0 at home, row tier + 1 on that fast tier,
                      so ``expert_bytes[resident[l, e] & ~IN_USE, l]`` is right for every expert.
``free_slots``        [F, P] and
``free_bytes``        [F, P] room per (tier, pool); P = L where capacity is per layer (pool = layer),
                      P = 1 where one pool serves all layers (``pool_of``). What does not limit is
                      ``UNLIMITED``; byte capacities therefore fit every policy that asks both.
``float_parameters``  float64 [*] and
``int_parameters``    [*]: the policy's own, in the order of ``Policy.parameters``.
``float_state``       float64 [*] and
``int_state``         [*]: everything the policy remembers, for the whole model. Plain arrays: a copy
                      is a snapshot, == is parity. Learned weights, sketches, ghost lists, EAM
                      collections and random generators live here too.
``admit``             int32 [*, 2] out: (expert, tier) rows; experts of this request only.
``evict``             int32 [*, 2] out: (layer, expert) rows; any resident, this layer's or another's.
``prefetch``          int32 [*, 3] out: (layer, expert, tier) rows; any non-resident expert, so
                      KTransformers' per-prefill update and moves between fast tiers (evict and
                      prefetch of the same expert in one call) need nothing more.
``num_out``           [3] out: rows filled in admit, evict, prefetch; zero when the policy is called.

Rules the caller asserts: an expert of the request is never evicted; nor is one that the plan pinned
(``PolicySetup.pinned``); admits and prefetches fit the room after the evictions, and the budget.
Not admitting is always allowed (bypass). Hits are judged before the call.
"""

from __future__ import annotations

import numpy as np
from numba import types

from moelab.policies.compiled import inlined

NEVER = np.iinfo(np.int64).max
"""``next_use`` of an expert that its layer does not use again."""

UNLIMITED = 2**62
"""Room or budget that does not limit; far from overflow when counted down."""

FLAG_PREFILL = 1  # the step holds prefill tokens
FLAG_DECODE = 2  # the step holds decode tokens (both flags: a mixed step)
FLAG_REQUEST_STARTS = 4  # a user request has its first tokens in this step (set on all its layers)
FLAG_REQUEST_ENDED = 8  # a user request had its last tokens in the step before (an engine cannot know it sooner)
FLAG_OVERFLOW = 16  # demand fill as recorded engines do: what the request uses may exceed the room

IN_USE = 64
"""Bit in ``resident`` that marks the experts of the request while it is decided."""

ADMIT, EVICT, PREFETCH = 0, 1, 2
"""Positions in ``num_out`` and kinds of decision in a log."""

_i64 = types.int64


def _array(dtype: types.Type, num_axes: int) -> types.Array:
    return types.Array(dtype, num_axes, "C")


FIELDS: dict[str, types.Type] = {
    "clock": _i64,
    "step": _i64,
    "layer": _i64,
    "flags": _i64,
    "upload_budget": _i64,
    "experts": _array(types.int32, 1),
    "hits": _array(types.int32, 1),
    "misses": _array(types.int32, 1),
    "token_counts": _array(types.int32, 1),
    "gate_sums": _array(types.float32, 1),
    "next_use": _array(_i64, 1),
    "candidate_scores": _array(types.float32, 2),
    "stale_experts": _array(types.int32, 1),
    "resident": _array(types.int8, 2),
    "pinned": _array(types.boolean, 2),
    "expert_bytes": _array(_i64, 2),
    "free_slots": _array(_i64, 2),
    "free_bytes": _array(_i64, 2),
    "float_parameters": _array(types.float64, 1),
    "int_parameters": _array(_i64, 1),
    "float_state": _array(types.float64, 1),
    "int_state": _array(_i64, 1),
    "admit": _array(types.int32, 2),
    "evict": _array(types.int32, 2),
    "prefetch": _array(types.int32, 2),
    "num_out": _array(_i64, 1),
}
"""Name and Numba type of every field of a view, in the order in which they lie there."""


@inlined
def pool_of(layer, free_slots):
    """Pool that serves a layer: itself where capacity is per layer, else the one global pool."""
    return layer if free_slots.shape[1] > 1 else 0
