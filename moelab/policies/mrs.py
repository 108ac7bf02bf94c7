"""mrs: minus recent score: each request pulls every expert of its layer towards its score, if among the p best.

Reference: HybriMoE (Zhong et al. 2025, arXiv 2504.05897), form of its code: S <- a TopP(s) + (1 - a) S, TopP
keeps the p largest scores of the layer and sets the others to 0; evict the smallest S. Where we differ: a
request of several tokens adds up their TopP; where the trace has no router scores the gate weights of the
routed experts stand for them (p then does not matter). Victims come from the request's pool: its own layer
where capacity is per layer (as in the code); with one global pool from all layers, compared as if all had been
updated in this step. All S of a layer shrink alike, so instead of shrinking them the weight of a new score
grows by 1 / (1 - a) a step (see ``ema_lfu``). Equal scores at the edge of TopP: the lower expert is kept. Ties
of victims: the older last use goes first. Serving and ADMIT(``hysteresis``, ``max_uploads``): ``score_heap``.
State: S in units of the first step, weight [P], its step [P]. Prefetching by S is a prefetcher's business.
Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.trace import CANDIDATE_SCORES
from moelab.policies.compiled import at, compiled
from moelab.policies.ema_lfu import LARGEST, scale_down
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.score_heap import (
    ADMISSION,
    IS_HEAP,
    lowered,
    new_heap,
    num_float_words,
    num_int_words,
    serve,
    touch,
)
from moelab.policies.signature import pool_of


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """All S 0; a score weighs a in step 0."""
    if not 0 < setup.parameters["alpha"] < 1:
        raise ValueError(f"alpha is {setup.parameters['alpha']}, expected a number between 0 and 1")
    if setup.parameters["top_p"] < 1:
        raise ValueError(f"top_p is {setup.parameters['top_p']}, expected at least 1 score to keep")
    num_pools = setup.num_pools
    float_state, int_state = new_heap(setup, num_floats=num_pools, num_ints=num_pools)
    float_state[len(float_state) - num_pools :] = setup.parameters["alpha"]
    return float_state, int_state


@compiled
def decide(view):
    """Let the weight grow, add the scores, serve."""
    if len(view.free_slots) == 0:
        return
    score, state, num_keys, num_pools = view.float_state, view.int_state, view.resident.size, view.free_slots.shape[1]
    pool, (num_layers, num_experts) = pool_of(view.layer, view.free_slots), view.resident.shape
    own, weight_at = num_int_words(num_keys, num_pools) + pool, num_float_words(num_keys) + pool
    first = view.layer * num_experts
    while state[own] < view.clock // num_layers:
        state[own] += 1
        score[at(weight_at)] /= 1 - view.float_parameters[1]
        if score[at(weight_at)] > LARGEST:
            scale_down(score, state, num_keys, num_pools, pool)
            score[at(weight_at)] /= LARGEST
    weight = score[at(weight_at)]
    rows, best, top_p = view.candidate_scores, view.prefetch, min(view.int_parameters[1], num_experts)
    for row in range(len(rows)):
        num_best = 0
        for expert in range(num_experts):  # the p best so far in falling order
            if num_best == top_p and rows[at(row), expert] <= rows[at(row), best[at(num_best - 1), 0]]:
                continue
            k = min(num_best, top_p - 1)
            while k > 0 and rows[at(row), best[at(k - 1), 0]] < rows[at(row), expert]:
                best[at(k), 0] = best[at(k - 1), 0]
                k -= 1
            best[at(k), 0] = expert
            num_best = min(num_best + 1, top_p)
        for k in range(num_best):
            node = first + best[at(k), 0]
            score[at(node)] += weight * rows[at(row), best[at(k), 0]]
            lowered(score, state, num_keys, num_pools, pool, node)
    for i in range(len(view.experts)):
        node = first + view.experts[i]
        touch(view, node)
        if len(rows) == 0:
            score[at(node)] += weight * view.gate_sums[i]
    serve(view, IS_HEAP)


POLICY = Policy(
    name="mrs",
    decide=decide,
    reference="Zhong et al. 2025, arXiv 2504.05897",
    parameters={**ADMISSION, "alpha": 0.5, "top_p": 12},
    new_state=new_state,
    layers_are_apart=True,
    reads=(CANDIDATE_SCORES,),
    without_reads="mrs of the gate weights of what was routed",
)

ADMIT_POLICY = Policy(
    name="admit_mrs",
    decide=decide,
    reference="ADMIT(h, U) over mrs",
    parameters={**POLICY.parameters, "hysteresis": 0.2},
    new_state=new_state,
    layers_are_apart=True,
    reads=(CANDIDATE_SCORES,),
    without_reads="mrs of the gate weights of what was routed",
)
