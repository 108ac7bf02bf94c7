"""Regret of a choice, and how sure the rounds are of it.  Floor 6.

The measured best is the minimum of noisy figures, so regret comes out too high: even the right choice has some. Rounds
are drawn again, the same ones for all plans, because what disturbs a round disturbs them all, and each draw has its own
best, and the regret of the same choice. Draws are too high once more by about as much. So the interval
is as wide below the measured regret as the draws go above it (Davison and Hinkley 1997, section 5.2: the basic one),
and never below 0; its upper end is the draws' own, because the basic one would cut off regret that may be there. How
often it holds the true regret is simulated in ``docs/log.md``. Does not know what is chosen, or by what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.analysis.bootstrap import basic_interval
from moelab.bench.placement.step_times import StepTimes


@dataclass(frozen=True)
class Regret:
    """``value``: time of the chosen over the lowest, - 1; ``interval`` of 95%, NaN from one round.

    ``chosen_is_best``: in which part of the draws nothing is below the chosen one; ``best``: whose time is lowest.
    """

    value: float
    interval: tuple[float, float]
    chosen_is_best: float
    best: int


def regret(measured: StepTimes, chosen: int) -> Regret:
    """``chosen``: which of the plans."""
    value, best = _regret(measured.mean_s, chosen)
    if measured.num_rounds < 2:
        return Regret(float(value), (float("nan"), float("nan")), float("nan"), int(best))
    drawn, _ = _regret(measured.drawn_mean_s, chosen)
    low, _ = basic_interval(value, drawn)
    return Regret(
        value=float(value), interval=(max(0.0, float(low)), float(2 * value - low)),
        chosen_is_best=float((drawn == 0).mean()), best=int(best),
    )  # fmt: skip


def _regret(mean_s: np.ndarray, chosen: int) -> tuple[np.ndarray, np.ndarray]:
    """(regret [...], whose is lowest [...]) of times [..., P]."""
    return mean_s[..., chosen] / mean_s.min(axis=-1) - 1, mean_s.argmin(axis=-1)
