"""Rank correlation of predicted with measured times, ties within noise left out; regret of the choice.  Floor 6.

Kendall's tau (1938) over the pairs that the measurement tells apart: (concordant - discordant) / pairs, a pair with
equal predictions counting as neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from moelab.bench.placement.regret import regret

NOISE = 2.0
"""A pair is a tie where the median difference of the rounds is within so many of its standard errors."""


@dataclass(frozen=True)
class Ranking:
    """``tau`` over ``num_untied`` of ``num_pairs``; ``regret``: measured, of the predicted best over the best, - 1,
    with its interval and in which part of the draws the predicted best is the best (``Regret``)."""

    tau: float
    num_pairs: int
    num_untied: int
    regret: float
    regret_interval: tuple[float, float]
    chosen_is_best: float
    chosen: int
    best: int


def ranking(predicted: np.ndarray, measured: np.ndarray) -> Ranking:
    """``predicted`` [P], ``measured`` [P, rounds], paired by round. NaN for ``tau`` where every pair is a tie."""
    signs = []
    for i, j in combinations(range(len(predicted)), 2):
        difference = measured[i] - measured[j]
        if abs(np.median(difference)) <= NOISE * standard_error_of_median(difference):
            continue
        signs.append(np.sign(predicted[i] - predicted[j]) * np.sign(np.median(difference)))
    chosen = int(np.argmin(predicted))
    of_chosen = regret(measured, chosen)
    return Ranking(
        tau=float(np.mean(signs)) if signs else float("nan"),
        num_pairs=len(predicted) * (len(predicted) - 1) // 2,
        num_untied=len(signs),
        regret=of_chosen.value,
        regret_interval=of_chosen.interval,
        chosen_is_best=of_chosen.chosen_is_best,
        chosen=chosen,
        best=of_chosen.best,
    )


def standard_error_of_median(values: np.ndarray) -> float:
    """From the median absolute deviation, as of a normal distribution, so that single disturbed rounds do not count."""
    deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return float(np.sqrt(np.pi / 2) * deviation / np.sqrt(len(values)))
