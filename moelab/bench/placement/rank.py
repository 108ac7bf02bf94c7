"""Rank correlation of predicted with measured times, ties within noise left out; regret of the choice.  Floor 6.

Kendall's tau (1938) over the pairs that the measurement tells apart: (concordant - discordant) / pairs, a pair with
equal predictions counting as neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from moelab.bench.placement.regret import regret
from moelab.bench.placement.step_times import StepTimes

NOISE = 2.0
"""A pair is a tie where its difference is within so many standard errors of it, of rounds drawn again."""


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


def ranking(predicted: np.ndarray, measured: StepTimes) -> Ranking:
    """``predicted`` [P], of the plans of ``measured``. NaN for ``tau`` where every pair is a tie."""
    signs = []
    mean_s, drawn = measured.mean_s, measured.drawn_mean_s
    for i, j in combinations(range(len(predicted)), 2):
        error = np.std(drawn[:, i] - drawn[:, j]) if len(drawn) else np.inf
        if abs(mean_s[i] - mean_s[j]) <= NOISE * error:
            continue
        signs.append(np.sign(predicted[i] - predicted[j]) * np.sign(mean_s[i] - mean_s[j]))
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
