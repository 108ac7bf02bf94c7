"""lfru: frequency over age: an expert's worth is its uses / (1 + steps since its last use).

Reference: vLLM pull request 37190 and colibri ``DEMAND_POLICY=lfru`` (frequency-weighted LRU); the quotient is the form
of our facts. Where we differ: a request is a set and counts once for an expert; age is counted in forward passes;
counts go on while an expert is not resident. The order changes with time, so a pool's worths are computed when
it must evict: O(residents of the pool) a request; with one global pool of thousands that is slow. Ties: the
older last use goes first. Serving and ADMIT(``hysteresis``, ``max_uploads``): ``score_heap``. State of its own: int32
pairs (uses, pass of the last use) [L * E, 2]. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.score_heap import ADMISSION, new_heap, num_int_words, select_lowest, serve, touch
from moelab.policies.signature import pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """No uses."""
    num_keys = setup.num_layers * setup.num_experts
    return new_heap(setup, num_ints=num_keys)


@compiled
def decide(view):
    """Count; where somebody is missing, weigh the pool and serve."""
    if len(view.free_slots) == 0:
        return
    score, state, num_keys, num_pools = view.float_state, view.int_state, view.resident.size, view.free_slots.shape[1]
    pool, first = pool_of(view.layer, view.free_slots), view.layer * view.resident.shape[1]
    now = view.clock // view.resident.shape[0]
    own = num_int_words(num_keys, num_pools)
    used = state[own : own + num_keys].view(np.int32)  # pairs; half of the bytes, for they come from the L2 cache
    for expert in view.experts:
        touch(view, first + expert)
        pair = 2 * (first + expert)
        used[at(pair)] += 1
        used[at(pair + 1)] = now
        score[at(first + expert)] = used[at(pair)]
    is_over = view.free_slots[0, pool] < 0 or view.free_bytes[0, pool] < 0
    if len(view.misses) == 0 and not is_over:
        return
    start = pool * (num_keys // num_pools)
    for i in range(state[at(4 * num_keys + pool)]):
        pair = 2 * state[at(start + i)]
        score[at(num_keys + start + i)] = used[at(pair)] / (1 + now - used[at(pair + 1)])
    serve(view, select_lowest(view))


POLICY = Policy(
    name="lfru",
    decide=decide,
    reference="vLLM pull request 37190; colibri lfru",
    parameters=dict(ADMISSION),
    new_state=new_state,
    layers_are_apart=True,
)

ADMIT_POLICY = Policy(
    name="admit_lfru",
    decide=decide,
    reference="ADMIT(h, U) over lfru",
    parameters={**POLICY.parameters, "hysteresis": 0.2},
    new_state=new_state,
    layers_are_apart=True,
)
