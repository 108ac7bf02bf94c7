"""Speed: time of a token = bytes / (eta x bandwidth) + t0, fitted on published rates; its errors beside it.  Floor 2.

Chosen beforehand and not tuned: relative least squares of the time (each point counts by its relative error), eta at
most 1, t0 at least 0, over all points of a mode that carry a bandwidth; "hybrid" and "cpu" apart. t0 is what does
not shrink with bandwidth: attention and shared experts on the GPU, launches, barriers, host code. Each layer brings its
share, so that t0 stands for 61 layers, as all those points have, and is scaled by the layers of another model.

The points of "hybrid" and "cpu" are DeepSeek-V3 and Kimi K2. Models with grouped attention have a fit of their own
(`outside_points`), not foreseen when the first two were fixed: a review found the first 1.5 to 3 times too slow.

Errors are leave-one-out: each point predicted by a fit that has not seen it. The interval runs from the lowest to
the highest of measured / predicted of those: a new point of the same kind falls into it with probability
(n - 1) / (n + 1) if it is exchangeable with the n (83% for 11). Points of one box are not independent, so read it
as a rough one. Other losses are refitted beside it (`loss_table`) to show what the choice decides.

It does not know compute bounds, prompt length within the points, or engines that nobody published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import least_squares, lsq_linear

from moelab.domain.units import GB
from moelab.sizing.outside_points import OTHER_FAMILIES, OTHER_FAMILY_POINTS
from moelab.sizing.validation_points import VALIDATION_POINTS, ValidationPoint

if TYPE_CHECKING:
    import pandas as pd

MODES = ("hybrid", "cpu", OTHER_FAMILIES)
ALL_POINTS = (*VALIDATION_POINTS, *OTHER_FAMILY_POINTS)
REFERENCE_LAYERS = 61
LOSSES = ("relative time", "relative speed", "logarithm", "absolute time")


@dataclass(frozen=True)
class Prediction:
    """Rate of a step of `batch` tokens. `interval_tok_per_s` covers a new point of the kind with `coverage`, `None`
    where the points hold nothing of the kind."""

    tok_per_s: float
    interval_tok_per_s: tuple[float, float]
    coverage: float | None
    median_error: float
    mean_error: float
    eta: float
    t0_s: float
    num_points: int
    mode: str


@dataclass(frozen=True, eq=False)
class SpeedFit:
    """A fit of one mode. `eta` share of the bandwidth, `t0_s` seconds of 61 layers; `left_out` [n] the rate that a fit
    without the point predicts for it, tok/s."""

    mode: str
    points: tuple[ValidationPoint, ...]
    eta: float
    t0_s: float
    left_out: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """float64 [n]: measured / predicted, leave-one-out."""
        return np.array([point.tok_per_s for point in self.points]) / self.left_out

    @property
    def errors(self) -> np.ndarray:
        """float64 [n]: predicted / measured - 1, leave-one-out."""
        return 1 / self.ratios - 1

    @property
    def median_error(self) -> float:
        """Median of the absolute leave-one-out errors."""
        return float(np.median(np.abs(self.errors)))

    @property
    def mean_error(self) -> float:
        return float(np.mean(np.abs(self.errors)))

    @property
    def coverage(self) -> float:
        return (len(self.points) - 1) / (len(self.points) + 1)

    def fixed_s(self, num_layers: int) -> float:
        """Seconds of a step that are not bandwidth, for a model of so many layers."""
        return self.t0_s * num_layers / REFERENCE_LAYERS

    def token_s(self, num_bytes: float, bandwidth_gb_per_s: float, num_layers: int = REFERENCE_LAYERS) -> float:
        """Seconds of a step that reads `num_bytes`."""
        if not bandwidth_gb_per_s > 0 or num_bytes < 0:
            raise ValueError(
                f"bandwidth is {bandwidth_gb_per_s} GB/s and bytes {num_bytes}, expected more than 0 and 0 or more"
            )
        return num_bytes / (self.eta * bandwidth_gb_per_s * GB) + self.fixed_s(num_layers)

    def predict(
        self, num_bytes: float, bandwidth_gb_per_s: float, *, batch: int = 1, eta: float | None = None,
        other_s: float = 0.0, at_least_s: float = 0.0, ceiling_tok_per_s: float = float("inf"),
        num_layers: int = REFERENCE_LAYERS,
    ) -> Prediction:  # fmt: skip
        """Rate of a step of `batch` tokens that reads `num_bytes` in all.

        `eta` replaces the fitted share where a machine has its own, measured; `other_s` is time that the points did
        not have (a longer cache), `at_least_s` what runs beside the reads. Nothing exceeds `ceiling_tok_per_s`.
        """
        self.token_s(num_bytes, bandwidth_gb_per_s)  # refuses what is no rate
        share = self.eta if eta is None else eta
        fixed_s = self.fixed_s(num_layers)
        step_s = max(num_bytes / (share * bandwidth_gb_per_s * GB), at_least_s) + fixed_s + other_s
        rate = batch / step_s
        low, high = (min(rate * float(bound), ceiling_tok_per_s) for bound in (self.ratios.min(), self.ratios.max()))
        return Prediction(
            tok_per_s=min(rate, ceiling_tok_per_s),
            interval_tok_per_s=(low, high),
            coverage=self.coverage,
            median_error=self.median_error,
            mean_error=self.mean_error,
            eta=share,
            t0_s=fixed_s,
            num_points=len(self.points),
            mode=self.mode,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each point: what was published, what a fit without it predicts, the error."""
        import pandas as pd

        rows = []
        for point, left_out, error in zip(self.points, self.left_out, self.errors, strict=True):
            rows.append(
                {
                    "id": point.id, "model": point.model, "weights": point.weights, "hardware": point.hardware,
                    "gb_per_s": point.bandwidth_gb_per_s, "kind": point.bandwidth_kind,
                    "gb_per_token": point.cpu_gb_per_token, "published_tok_per_s": point.tok_per_s,
                    "left_out_tok_per_s": float(left_out), "error": float(error),
                    "ceiling_tok_per_s": point.ceiling_tok_per_s, "source": point.source, "note": point.note,
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        low, high = self.ratios.min(), self.ratios.max()
        return (
            f"{self.mode}: bytes / ({self.eta:.2f} x bandwidth) + {1e3 * self.t0_s:.0f} ms x layers / 61, "
            f"{len(self.points)} points; leave-one-out error median {self.median_error:.1%}, mean "
            f"{self.mean_error:.1%}; measured / predicted "
            f"{low:.2f} to {high:.2f}"
        )


def with_bandwidth(mode: str, points: Sequence[ValidationPoint] = ALL_POINTS) -> tuple[ValidationPoint, ...]:
    """The points of a mode that carry a bandwidth. ValueError for another mode."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    return tuple(point for point in points if point.mode == mode and point.bandwidth_gb_per_s is not None)


def fit_points(points: Sequence[ValidationPoint], loss: str = "relative time") -> tuple[float, float]:
    """(eta, t0 in seconds). ValueError for fewer than two points or an unknown loss."""
    if loss not in LOSSES or len(points) < 2:
        raise ValueError(
            f"loss is {loss!r} on {len(points)} points, expected one of {', '.join(LOSSES)} on two or more"
        )
    times = np.array([1 / point.tok_per_s for point in points])
    reads = np.array([point.cpu_gb_per_token / (point.bandwidth_gb_per_s or np.nan) for point in points])
    table = np.stack([reads, np.array([point.num_layers / REFERENCE_LAYERS for point in points])], axis=1)
    bounds = (np.array([1.0, 0.0]), np.array([np.inf, np.inf]))
    if loss in ("relative time", "absolute time"):
        weight = 1 / times if loss == "relative time" else np.ones(len(times))
        inverse_eta, t0_s = lsq_linear(table * weight[:, None], times * weight, bounds=bounds, method="bvls").x
    else:
        distance = {
            "relative speed": lambda x: times / (table @ x) - 1,
            "logarithm": lambda x: np.log((table @ x) / times),
        }[loss]
        start = np.array([2.0, 0.03])
        inverse_eta, t0_s = least_squares(distance, start, bounds=bounds, x_scale=start, xtol=1e-12, ftol=1e-12).x
    return float(1 / inverse_eta), float(t0_s)


def fit(points: Sequence[ValidationPoint], mode: str, loss: str = "relative time") -> SpeedFit:
    """Fit `points` and predict each by a fit of the others. At least three points."""
    points = tuple(points)
    if len(points) < 3:
        raise ValueError(f"{len(points)} points, expected three or more: each is predicted from the others")
    eta, t0_s = fit_points(points, loss)
    left_out = []
    for index, point in enumerate(points):
        other_eta, other_t0_s = fit_points(points[:index] + points[index + 1 :], loss)
        assert point.bandwidth_gb_per_s is not None
        fixed_s = other_t0_s * point.num_layers / REFERENCE_LAYERS
        left_out.append(1 / (point.cpu_gb_per_token / (other_eta * point.bandwidth_gb_per_s) + fixed_s))
    return SpeedFit(mode, points, eta, t0_s, np.array(left_out))


@cache
def speed_fit(mode: str) -> SpeedFit:
    """The fit of a mode on the points that ship."""
    return fit(with_bandwidth(mode), mode)


def ablation() -> dict[int, tuple[float, float]]:
    """Sockets -> (eta, t0 in seconds), from one box alone: DeepSeek-V3 with 8 and with 6 experts a layer.

    The two rates of one machine differ by the bytes of two experts and nothing else, so that they separate the terms
    without any other point (points 1 to 4). A second opinion on the fit, not part of it.
    """
    point = {point.id: point for point in VALIDATION_POINTS}
    terms = {}
    for sockets, (eight, six) in {1: (1, 4), 2: (2, 3)}.items():
        more, less = point[eight], point[six]
        gb_per_s = (more.cpu_gb_per_token - less.cpu_gb_per_token) / (1 / more.tok_per_s - 1 / less.tok_per_s)
        t0_s = 1 / more.tok_per_s - more.cpu_gb_per_token / gb_per_s
        terms[sockets] = (gb_per_s / (more.bandwidth_gb_per_s or float("nan")), t0_s)
    return terms
