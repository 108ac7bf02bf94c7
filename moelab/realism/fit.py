"""fit(trace): parameters of the generator by simulated moments, on half of the requests.  Floor 4.

The method of simulated moments (McFadden 1989): the distance between the moments of the real half and of a
synthetic trace with the same requests is minimised, always with the same seeds, by Levenberg's and Marquardt's damped
least squares (finite differences, because a moment of discrete draws has no derivative). Not all moments can be
met at once; which are not is what ``compare`` shows. Miss ratios and node maxima are never looked at.
Does not fit the latent size nor the profile over early layers, which are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moelab.domain.trace import Trace
from moelab.planner.frequency import split
from moelab.realism.compare import HELD_OUT, SPLIT_SEED, like
from moelab.realism.moments import moments
from moelab.synthetic import RoutingParameters

_SCALE = {"domain_jaccard": 0.05, "pair_lift": 0.3, "adjacent_pair_share": 0.02}
"""Size of an error that counts as one; 0.01 for the shares and overlaps that are not named."""

_POSITIVE = ("popularity", "topic", "drift", "content", "persistence")
_FRACTION = ("domain_share", "drift_memory", "shared_content", "alike")

_STEP = 0.15
"""Of the finite differences, in logarithms and logits: large beside the steps that discrete draws make."""


def fit(
    trace: Trace,
    start: RoutingParameters,
    *,
    max_evaluations: int = 150,
    num_seeds: int = 1,
    source: str | None = None,
    progress: bool = True,
) -> RoutingParameters:
    """Parameters for the routing of ``trace``, from ``start``; the gate temperature from the mean top gate share."""
    from tqdm.auto import tqdm

    train, _, _ = split(trace, held_out=HELD_OUT, seed=SPLIT_SEED)
    wanted = moments(train)

    def residuals(point: np.ndarray) -> np.ndarray:
        parameters = _from_point(point, start)
        got = [moments(like(train, parameters, seed)) for seed in range(num_seeds)]
        bar.update()
        return errors({name: float(np.mean([row[name] for row in got])) for name in wanted}, wanted)

    with tqdm(total=max_evaluations, desc="fit", disable=not progress) as bar:
        best = _damped_least_squares(residuals, _to_point(start), max_evaluations, bar)
    found = _from_point(best, start)
    said = source or f"fitted to half of the requests of {trace.header.model}"
    return found.model_copy(update={"source": said, "gate_temperature": _temperature(train, found)})


def errors(got: dict[str, float], wanted: dict[str, float]) -> np.ndarray:
    """Each moment's error in units of its scale; those that ``wanted`` cannot say are left out."""
    return np.array([(got[n] - value) / _SCALE.get(n, 0.01) for n, value in wanted.items() if np.isfinite(value)])


def _damped_least_squares(
    residuals: Callable[[np.ndarray], np.ndarray], point: np.ndarray, max_evaluations: int, bar: Any
) -> np.ndarray:
    """The point of the least sum of squares that was seen; Levenberg 1944, Marquardt 1963."""
    damping, evaluations = 1.0, 1
    here = residuals(point)
    while evaluations + len(point) < max_evaluations and damping < 1e4:
        slopes = np.stack([(residuals(point + _STEP * axis) - here) / _STEP for axis in np.eye(len(point))], axis=1)
        evaluations += len(point)
        normal, gradient = slopes.T @ slopes, slopes.T @ here
        while evaluations < max_evaluations and damping < 1e4:
            move = np.linalg.solve(normal + damping * (np.diag(np.diag(normal)) + 1e-6 * np.eye(len(point))), -gradient)
            there = point + np.clip(move, -1, 1)
            value = residuals(there)
            evaluations += 1
            if (value**2).sum() < (here**2).sum():
                point, here, damping = there, value, damping / 3
                break
            damping *= 3
        bar.set_postfix(distance=f"{(here**2).sum():.1f}")
    return point


def _to_point(parameters: RoutingParameters) -> np.ndarray:
    positive = [np.log(max(1e-3, getattr(parameters, name))) for name in _POSITIVE]
    share = np.clip([getattr(parameters, name) for name in _FRACTION], 0.01, 0.99)
    return np.array([*positive, *np.log(share / (1 - share))])


def _from_point(point: np.ndarray, start: RoutingParameters) -> RoutingParameters:
    values = dict(zip(_POSITIVE, np.exp(np.clip(point[: len(_POSITIVE)], -7, 3)).round(4).tolist(), strict=True))
    share = 1 / (1 + np.exp(-np.clip(point[len(_POSITIVE) :], -6, 6)))
    values |= dict(zip(_FRACTION, share.round(4).tolist(), strict=True))
    return start.model_copy(update=values)


def _temperature(train: Trace, parameters: RoutingParameters) -> float:
    """Of the gate's softmax, so that the mean share of the top gate weight is the real one; by bisection."""
    real = _top_gate(train)
    part = train.take(np.arange(train.num_tokens) < 2000)
    low, high = 0.1, 10.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        made = like(part, parameters.model_copy(update={"gate_temperature": middle}), 0)
        low, high = (middle, high) if _top_gate(made) > real else (low, middle)
    return round((low * high) ** 0.5, 3)


def _top_gate(trace: Trace) -> float:
    gates = trace.gate_weights.astype(np.float64)
    total = gates.sum(-1)
    return float((gates.max(-1)[total > 0] / total[total > 0]).mean())
