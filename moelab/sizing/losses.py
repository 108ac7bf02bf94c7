"""Losses: what the choice of the loss decides, each fitted anew beside the one that predicts.  Floor 2.

The first of `LOSSES` was chosen before any fit was run. The table exists so that nobody has to believe that it was not
picked for its errors. It does not choose anything.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from moelab.sizing.speed import LOSSES, MODES, SpeedFit, fit, with_bandwidth
from moelab.sizing.validation_points import ValidationPoint

if TYPE_CHECKING:
    import pandas as pd


@cache
def other_fits(mode: str) -> dict[str, SpeedFit]:
    """The fits of a mode by every loss, the one that predicts first."""
    points = with_bandwidth(mode)
    return {loss: fit(points, mode, loss) for loss in LOSSES}


def loss_table() -> pd.DataFrame:
    """One row for each mode and loss: eta, t0, leave-one-out errors. The first loss is the one that predicts.

    "bandwidth alone" has no t0: what decoding would be if it followed the bandwidth (relative time).
    """
    import pandas as pd

    rows = []
    for mode in MODES:
        points = with_bandwidth(mode)
        for loss, one in other_fits(mode).items():
            rows.append(_row(mode, loss, one.eta, one.t0_s, np.abs(one.errors)))
        etas = [_eta_alone(points[:i] + points[i + 1 :]) for i in range(len(points))]
        errors = [
            abs(eta * (point.ceiling_tok_per_s or np.nan) / point.tok_per_s - 1)
            for eta, point in zip(etas, points, strict=True)
        ]
        rows.append(_row(mode, "bandwidth alone", _eta_alone(points), 0.0, np.array(errors)))
    return pd.DataFrame(rows)


def _eta_alone(points: tuple[ValidationPoint, ...]) -> float:
    """Relative least squares of the time without t0."""
    ratio = np.array([point.tok_per_s / (point.ceiling_tok_per_s or np.nan) for point in points])
    return float(ratio @ ratio / ratio.sum())


def _row(mode: str, loss: str, eta: float, t0_s: float, errors: np.ndarray) -> dict[str, object]:
    return {
        "mode": mode, "loss": loss, "points": len(errors), "eta": eta, "t0_ms": 1e3 * t0_s,
        "median_error": float(np.median(errors)), "mean_error": float(errors.mean()),
        "largest_error": float(errors.max()),
    }  # fmt: skip
