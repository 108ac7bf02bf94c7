"""Gates: what a router's weights are, found from its numbers, and its experts in rank order.

The families do not say which score they use, so it is found: the score whose values at the chosen experts are the
gate weights up to one factor for each token. Rank order is the order of score plus bias, which `torch.topk` does not
promise with ``sorted=False`` (DeepSeek, GLM). It does not know modules or requests. Floor 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from moelab.domain.trace import GateWeightKind, SlotOrder

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": lambda logits: logits.sigmoid(),
    "sqrtsoftplus": lambda logits: torch.nn.functional.softplus(logits).sqrt(),
}
_OF_DTYPE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 5e-3}  # bfloat16: 2e-2


@dataclass(frozen=True)
class Gates:
    """What was found of one router: its score (``None``: none fits), kind of its weights, order of its slots."""

    score: str | None
    kind: GateWeightKind
    slot_order: SlotOrder


def find_gates(logits: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, bias: torch.Tensor | None) -> Gates:
    """From one step: logits [T, E], weights and ids [T, K], the bias [E] that chooses but does not weigh."""
    tolerance = max(_OF_DTYPE.get(each.dtype, 2e-2) for each in (logits, weights))
    chosen = weights.double()
    total = chosen.sum(-1)
    misfits = {}
    ratios = {}
    for name, score in SCORES.items():
        ratios[name] = chosen / score(logits.double()).gather(1, ids).clamp_min(1e-30)
        misfits[name] = _spread(ratios[name])
    exact = {name: float((ratio - 1).abs().max()) for name, ratio in ratios.items()}
    best = min(exact, key=lambda name: exact[name])
    kind: GateWeightKind = "unknown"
    if exact[best] < tolerance:
        kinds: dict[str, GateWeightKind] = {"softmax": "softmax_over_all", "sigmoid": "sigmoid"}
        return Gates(best, kinds.get(best, "unknown"), "rank")
    best = min(misfits, key=lambda name: misfits[name])
    if misfits[best] >= tolerance:
        return Gates(None, "unknown", "rank" if bias is None else "unknown")
    if _spread(total[None]) < tolerance:
        scaled = abs(float(total.mean()) - 1) >= tolerance
        softmax = best == "softmax" and not scaled
        kind = "softmax_over_selected" if softmax else "normalised_scaled" if scaled else "normalised"
    return Gates(best, kind, "rank")


def in_rank_order(
    gates: Gates, logits: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, ids) [T, K], the highest choice first; as they came where the choice is not known."""
    if gates.slot_order != "rank":
        return weights, ids
    # Without a bias every score that is known here rises with the logit.
    choice = logits.float() if bias is None else SCORES[gates.score or "softmax"](logits.float()) + bias.float()
    order = choice.gather(1, ids).argsort(dim=-1, descending=True, stable=True)
    return weights.gather(1, order), ids.gather(1, order)


def _spread(ratio: torch.Tensor) -> float:
    """Largest relative distance from the mean of its row."""
    mean = ratio.mean(-1, keepdim=True)
    return float(((ratio - mean) / mean.clamp_min(1e-30)).abs().max())
