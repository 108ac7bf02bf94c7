"""Cache-aware routing: the experts that a token uses when residents of the fast tier get a bonus.  Floor 1.

Definition and source: ``domain.lossy``. Ties go to what the router itself had chosen, in its order, then to the lower
id: so without a bonus the choice is the router's own, also where scores were rounded (a trace keeps float16). The live
engine and the simulator call the same function. Does not know gate weights, policies or layers' pools.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.lossy import Lossy
from moelab.domain.trace import NO_EXPERT
from moelab.policies.compiled import compiled


class CacheAwareRouting:
    """Running mean of the range of the scores of each layer, and the choice with it.

    ``mean_range`` float64 [L] and ``num_tokens`` int64 [L] are all it remembers.
    """

    def __init__(self, lossy: Lossy, num_layers: int, num_experts: int) -> None:
        self.lossy = lossy
        self.mean_range = np.zeros(num_layers)
        self.num_tokens = np.zeros(num_layers, np.int64)
        self._rank, self._taken = np.zeros((2, num_experts), np.int32)

    def choose(self, layer: int, scores: np.ndarray, resident: np.ndarray, expert_ids: np.ndarray) -> None:
        """Write over ``expert_ids`` int32 [T, K] (the router's own, in rank order) in place, in the new rank order.

        ``scores`` float32 [T, E]: those that chose; -inf: not allowed (a group that was not kept). ``resident`` [E]: 0
        where the expert is not on the fast tier. Tokens with an unrouted slot stay as they are and count no range.
        """
        routed = (expert_ids != NO_EXPERT).all(axis=1)
        if routed.any():
            kept = scores[routed]
            lowest = np.where(np.isneginf(kept), np.inf, kept).min(axis=1)
            ranges = (kept.max(axis=1) - lowest).astype(np.float64)
            self.num_tokens[layer] += len(ranges)
            self.mean_range[layer] += (ranges - self.mean_range[layer]).sum() / self.num_tokens[layer]
        bonus = float(self.lossy.cache_bias * self.mean_range[layer])
        _choose(
            np.ascontiguousarray(scores, np.float32), np.ascontiguousarray(resident != 0), bonus,
            self.lossy.num_protected, expert_ids, self._rank, self._taken,
        )  # fmt: skip


@compiled
def _choose(scores, resident, bonus, num_protected, expert_ids, rank, taken):
    """``rank`` and ``taken`` int32 [E] are buffers."""
    num_tokens, top_k = expert_ids.shape
    num_experts = scores.shape[1]
    for token in range(num_tokens):
        is_whole = True
        for k in range(top_k):
            is_whole &= expert_ids[token, k] < num_experts
        if not is_whole:
            continue
        for expert in range(num_experts):
            rank[expert] = top_k
            taken[expert] = 0
        for k in range(top_k):
            rank[expert_ids[token, k]] = k
        for k in range(min(num_protected, top_k)):
            taken[expert_ids[token, k]] = 1
        for k in range(num_protected, top_k):
            best, best_score = -1, -np.inf
            for expert in range(num_experts):
                score = np.float64(scores[token, expert])
                if taken[expert] or score == -np.inf:
                    continue
                if resident[expert]:
                    score += bonus
                if best < 0 or score > best_score or (score == best_score and rank[expert] < rank[best]):
                    best, best_score = expert, score
            if best < 0:  # fewer are allowed than a token needs: the router took what was left, by lower id
                best = 0
                while taken[best]:
                    best += 1
            taken[best] = 1
            expert_ids[token, k] = best
