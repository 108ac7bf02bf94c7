"""ema_lfu: uses that fade: an expert's worth is the sum over its uses of ``decay`` to the steps that passed
since.

Reference: LFU with aging (Robinson and Devarakonda 1990; here exponential). Where we differ: a request is a set
and counts once for an expert; age is counted in forward passes. All worths fade alike, so instead of shrinking
all of them the weight of a new use grows by 1 / decay a step; when it passes 2**256 everything is scaled by
2**-256 (exact, but for worths below 1e-230 of a use, which become 0). Ties: the older last use goes first.
Serving and ADMIT(``hysteresis``, ``max_uploads``): ``score_heap``. State: scores in units of the first step,
weight of a use [P] and the step it holds for [P]. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.score_heap import (
    ADMISSION,
    IS_HEAP,
    new_heap,
    num_float_words,
    num_int_words,
    serve,
    touch,
    weigh_anew,
)
from moelab.policies.signature import pool_of

LARGEST = 2.0**256


@compiled
def scale_down(score, state, num_keys, num_pools, pool):
    """Worths of a pool in units that are ``LARGEST`` times as large."""
    stretch = num_keys // num_pools
    for k in range(pool * stretch, (pool + 1) * stretch):
        score[at(k)] /= LARGEST
    weigh_anew(score, state, num_keys, num_pools, pool)


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """No uses; a use weighs 1 in step 0."""
    if not 0 < setup.parameters["decay"] <= 1:
        raise ValueError(f"decay is {setup.parameters['decay']}, expected a number above 0 and at most 1")
    num_pools = setup.num_pools
    float_state, int_state = new_heap(setup, num_floats=num_pools, num_ints=num_pools)
    float_state[len(float_state) - num_pools :] = 1
    return float_state, int_state


@compiled
def decide(view):
    """Let the weight grow, count, serve."""
    if len(view.free_slots) == 0:
        return
    score, state, num_keys, num_pools = view.float_state, view.int_state, view.resident.size, view.free_slots.shape[1]
    pool, num_layers = pool_of(view.layer, view.free_slots), view.resident.shape[0]
    own, weight = num_int_words(num_keys, num_pools) + pool, num_float_words(num_keys) + pool
    while state[own] < view.clock // num_layers:
        state[own] += 1
        score[at(weight)] /= view.float_parameters[1]
        if score[at(weight)] > LARGEST:
            scale_down(score, state, num_keys, num_pools, pool)
            score[at(weight)] /= LARGEST
    for expert in view.experts:
        node = view.layer * view.resident.shape[1] + expert
        touch(view, node)
        score[at(node)] += score[at(weight)]
    serve(view, IS_HEAP)


POLICY = Policy(
    name="ema_lfu",
    decide=decide,
    reference="Robinson and Devarakonda 1990 (aging)",
    parameters={**ADMISSION, "decay": 0.97},
    new_state=new_state,
    layers_are_apart=True,
)

ADMIT_POLICY = Policy(
    name="admit_ema_lfu",
    decide=decide,
    reference="ADMIT(h, U) over ema_lfu; upload limit: llama.cpp --moe-expert-cache-inserts",
    parameters={**POLICY.parameters, "hysteresis": 0.2, "decay": 0.99},
    new_state=new_state,
    layers_are_apart=True,
)
