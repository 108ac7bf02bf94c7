"""prefetch_markov: LRU, and copying ahead what most often followed this layer's experts in the next layer.

Reference: order-1 transitions between layers (arXiv 2510.05497 measures them): score of e' = sum over the
request's e of N(e, e') / sum N(e, .). Counts are of (expert of a layer, expert of the next) in the same pass
and begin at 0; the sets count, not the gate weights. The ``width`` highest scores above 0, ties to the lower
expert. Time O(M E) a request, memory (L - 1) E^2 words. Serving, room and accounting: ``prefetch_lru``. State
of its own: row sums of N [L - 1, E], last set of the layer before [E] and its size [1], [E] for the best, N
[L - 1, E, E] as int32 (half the bytes of a row, and the processor divides four at a time); ``float_state`` [E]
scores. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.prefetch_lru import copy_ahead, new_lists, num_words, serve_lru


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """The lists of ``prefetch_lru``; no transitions."""
    num_experts = setup.num_experts
    num_rows = (setup.num_layers - 1) * num_experts
    own = num_rows + 2 * num_experts + 1 + (num_rows * num_experts + 1) // 2
    return np.zeros(num_experts, np.float64), new_lists(setup, num_ints=own)


@compiled
def decide(view):
    """Learn from the layer before, serve, copy what is likely next."""
    if len(view.free_slots) == 0:
        return
    (num_layers, num_experts), score = view.resident.shape, view.float_state
    sums = view.int_state[num_words(view.resident.size, view.free_slots.shape[1]) :]
    num_rows = (num_layers - 1) * num_experts
    before, best = sums[num_rows:], sums[num_rows + num_experts + 1 :]
    followers = sums[num_rows + 2 * num_experts + 1 :].view(np.int32)
    if view.layer > 0:
        for i in range(before[num_experts]):
            row = (view.layer - 1) * num_experts + before[i]
            for expert in view.experts:
                followers[at(row * num_experts + expert)] += 1
            sums[at(row)] += len(view.experts)
    for i in range(len(view.experts)):
        before[i] = view.experts[i]
    before[num_experts] = len(view.experts)
    serve_lru(view)
    if view.layer + 1 == num_layers:
        return
    for expert in range(num_experts):
        score[expert] = 0
    for expert in view.experts:
        row = view.layer * num_experts + expert
        total = np.float64(sums[at(row)])
        if total > 0:
            of_row = followers[row * num_experts : (row + 1) * num_experts]
            for follower in range(num_experts):
                score[follower] += of_row[follower] / total
    num_best, width = 0, min(view.int_parameters[0], num_experts)
    for expert in range(num_experts):
        if score[expert] == 0 or width < 1 or (num_best == width and score[expert] <= score[best[width - 1]]):
            continue
        k = min(num_best, width - 1)
        while k > 0 and score[best[k - 1]] < score[expert]:
            best[k] = best[k - 1]
            k -= 1
        best[k] = expert
        num_best = min(num_best + 1, width)
    copy_ahead(view, view.layer + 1, best, num_best)


POLICY = Policy(
    name="prefetch_markov",
    decide=decide,
    reference="arXiv 2510.05497 (transitions between layers)",
    parameters={"width": 8},
    new_state=new_state,
    prefetches=True,
)
