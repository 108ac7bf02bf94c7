"""gdsf: frequency times cost over size, above a floor that rises to the worth of whatever was evicted last.

Reference: GreedyDual-Size-Frequency (Cherkasova 1998): H = L + uses * cost / size, L <- H of the victim. Cost
is what a miss reads at home, size what the expert takes on the fast tier, both in bytes, so their quotient is 1
where both formats agree or no bytes are known. Where we differ: a request is a set and counts once for an
expert; all that a request admits gets the floor after its evictions. An eviction forgets the uses. One floor
per pool. Ties: the older last use goes first. Serving and ADMIT(``hysteresis``, ``max_uploads``):
``score_heap``; a miss competes with the floor before the request. State: H [L * E], uses [L * E], floors [P].
libcachesim inserts before it evicts: a newcomer is worth one use above the floor BEFORE its eviction, may itself be the
lowest, and then raises the floor and is gone again. That is ``floor_before`` 1 (newcomers keep the worth they competed
with, and one that was turned away for lack of worth or room raises the floor to it) with a ``hysteresis`` just below
0 (newcomers win ties, being the younger use); then single-expert streams have equal hit counts. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.score_heap import ADMISSION, IS_HEAP, new_heap, num_float_words, serve, touch
from moelab.policies.signature import ADMIT, EVICT, pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """No uses, floors 0."""
    return new_heap(setup, num_floats=setup.num_layers * setup.num_experts + setup.num_pools)


@compiled
def decide(view):
    """Count, serve, raise the floor, weigh the admitted on it."""
    if len(view.free_slots) == 0:
        return
    score, state, num_keys = view.float_state, view.int_state, view.resident.size
    pool, num_experts = pool_of(view.layer, view.free_slots), view.resident.shape[1]
    first, uses = view.layer * num_experts, num_float_words(num_keys)
    floor = uses + num_keys + pool
    home, fast = view.expert_bytes[0, view.layer], view.expert_bytes[1, view.layer]
    gain = home / fast if home > 0 and fast > 0 else 1.0
    for expert in view.experts:
        node = first + expert
        touch(view, node)
        score[at(uses + node)] += 1
        score[at(node)] = score[at(floor)] + score[at(uses + node)] * gain
    serve(view, IS_HEAP)
    for k in range(view.num_out[EVICT]):
        node = np.int64(view.evict[k, 0]) * num_experts + view.evict[k, 1]
        score[at(floor)] = max(score[at(floor)], score[at(node)])
        score[at(uses + node)] = 0
    num_admit = view.num_out[ADMIT]
    if view.int_parameters[1]:
        if num_admit < min(len(view.misses), view.upload_budget, view.int_parameters[0]):
            score[at(floor)] = max(score[at(floor)], score[at(first + view.admit[at(num_admit), 0])])
    else:
        for k in range(num_admit):
            node = first + view.admit[k, 0]
            score[at(node)] = score[at(floor)] + score[at(uses + node)] * gain
    for i in view.misses:  # what was not admitted is forgotten too
        node = first + view.experts[i]
        if state[num_keys + node] < 0:
            score[at(uses + node)] = 0


POLICY = Policy(
    name="gdsf",
    decide=decide,
    reference="Cherkasova 1998",
    parameters={**ADMISSION, "floor_before": 0},
    new_state=new_state,
    layers_are_apart=True,
)
