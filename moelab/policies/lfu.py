"""lfu: keep the experts that were used in the most requests since the beginning.

Reference: least frequently used; as an expert cache above LRU in Liang et al. 2025 (arXiv 2511.05814). Where we
differ: a request is a set and counts once for an expert however many tokens routed to it; counts go on while an
expert is not resident, so that old favourites stay (``forget`` 1: an eviction forgets the count, as web caches
do; then single-expert streams equal libcachesim's LFU). Ties: the older last use goes first. Serving, ties and
ADMIT(``hysteresis``, ``max_uploads``): ``score_heap``. State: score = count. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.score_heap import ADMISSION, IS_HEAP, new_heap, serve, touch
from moelab.policies.signature import EVICT


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """No counts."""
    return new_heap(setup)


@compiled
def decide(view):
    """Count, serve, and forget the evicted if so asked."""
    if len(view.free_slots) == 0:
        return
    score, num_experts = view.float_state, view.resident.shape[1]
    for expert in view.experts:
        node = view.layer * num_experts + expert
        touch(view, node)
        score[at(node)] += 1
    serve(view, IS_HEAP)
    if view.int_parameters[1]:
        for k in range(view.num_out[EVICT]):
            score[at(view.evict[k, 0] * num_experts + view.evict[k, 1])] = 0


POLICY = Policy(
    name="lfu",
    decide=decide,
    reference="Liang et al. 2025, arXiv 2511.05814",
    parameters={**ADMISSION, "forget": 0},
    new_state=new_state,
    layers_are_apart=True,
)
