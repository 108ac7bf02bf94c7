"""Regret of a choice, and how sure the rounds are of it.  Floor 6.

The measured best is the minimum of noisy medians, so regret comes out too high: even the right choice has some. Rounds
are drawn again, the same ones for all plans, because what disturbs a round disturbs them all, and each draw has its own
medians, its own best, and the regret of the same choice. Draws are too high once more by about as much. So the interval
is as wide below the measured regret as the draws go above it (Davison and Hinkley 1997, section 5.2: the basic one),
and never below 0; its upper end is the draws' own, because the basic one would cut off regret that may be there. How
often it holds the true regret is simulated in ``docs/log.md``. Does not know what is chosen, or by what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.analysis.bootstrap import basic_interval, resamples

NUM_SAMPLES = 2000


@dataclass(frozen=True)
class Regret:
    """``value``: the median of the chosen over the lowest, - 1; ``interval`` of 95%, NaN from one round.

    ``chosen_is_best``: in which part of the draws no median is below the chosen one's; ``best``: whose is lowest.
    """

    value: float
    interval: tuple[float, float]
    chosen_is_best: float
    best: int


def regret(measured: np.ndarray, chosen: int, *, seed: int = 0) -> Regret:
    """``measured`` [P, rounds], paired by round; ``chosen``: which of P. One ``seed``, the same draws."""
    value, best = _regret(np.median(measured, axis=1), chosen)
    counts = resamples(measured.shape[1], NUM_SAMPLES, seed).astype(np.int64)
    rounds = np.array([np.repeat(np.arange(len(count)), count) for count in counts], np.int64)
    if not len(rounds):
        return Regret(float(value), (float("nan"), float("nan")), float("nan"), int(best))
    drawn, _ = _regret(np.median(measured[:, rounds], axis=2), chosen)
    low, _ = basic_interval(value, drawn)
    return Regret(
        value=float(value), interval=(max(0.0, float(low)), float(2 * value - low)),
        chosen_is_best=float((drawn == 0).mean()), best=int(best),
    )  # fmt: skip


def _regret(middle: np.ndarray, chosen: int) -> tuple[np.ndarray, np.ndarray]:
    """(regret [...], whose is lowest [...]) of medians [P, ...]."""
    return middle[chosen] / middle.min(axis=0) - 1, middle.argmin(axis=0)
