"""Router of DeepSeek-V3: which experts a token uses, in rank order, and their gate weights.

DeepSeek-V3 technical report (2024), section 2.1.2: float32 logits, sigmoid, a bias that is added FOR
THE CHOICE ONLY, groups scored by the sum of their two best, the best groups kept, top-k among them,
gate weights from the scores without bias, divided by their sum, times routed_scaling_factor.

Tie rule: of equal scores the lower expert (or group) id ranks first, on every device. `torch.topk`
leaves that open; a stable sort costs 3 us more per token at 48 experts. Rank order is the order of
the biased score that chose. It does not know experts or observers. Floor 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moelab.engine.dense import Linear


def ranked(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Ids of the k largest along the last axis, largest first, ties by lower id. int64 [..., k]."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]


@dataclass(frozen=True)
class Router:
    """`logits` float32 [T, H] -> [T, E], bias float32 [E] (`e_score_correction_bias`)."""

    logits: Linear
    bias: torch.Tensor
    top_k: int
    n_group: int
    topk_group: int
    normalise: bool
    scaling_factor: float

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, H] -> expert ids int64 [T, K] in rank order, gate weights float32 [T, K]."""
        return self.choose(self.scores(x))

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> float32 [T, E], without bias."""
        return self.logits(x.float()).sigmoid()

    def choose(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [T, E] -> what a call returns."""
        ids = ranked(self.choice(scores), self.top_k)
        weights = scores.gather(-1, ids)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * self.scaling_factor

    def choice(self, scores: torch.Tensor) -> torch.Tensor:
        """What is ranked [T, E]: scores with bias, -inf in groups that are not kept."""
        choice = scores + self.bias
        return self._within_best_groups(choice) if self.n_group > 1 else choice

    def _within_best_groups(self, choice: torch.Tensor) -> torch.Tensor:
        groups = choice.unflatten(-1, (self.n_group, -1))
        group_score = groups.topk(2, dim=-1).values.sum(-1)
        kept = torch.zeros_like(group_score, dtype=torch.bool)
        kept.scatter_(-1, ranked(group_score, self.topk_group), True)
        return groups.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
