"""Rounds: cases measured by turns, in another order each round, so that drift meets all of them. Floor 3.

A shared machine has moments, and some have states that last for seconds (two memory speeds). So nothing here is an
average: every case is run once in each round, figures are medians over rounds or medians of ratios within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

FEWEST_ROUNDS = 5


def in_rounds(
    cases: Mapping[str, Callable[[], float]],
    *,
    seconds: float,
    most_rounds: int = 400,
    seed: int = 0,
    on_round: Callable[[float], object] = lambda share: None,
) -> dict[str, np.ndarray]:
    """Values of each case, float64 [rounds]; as many rounds as ``seconds`` allow, at least ``FEWEST_ROUNDS``.

    The first round warms up and is left out. ``on_round`` is told the share of the time that is over.
    """
    rng = np.random.default_rng(seed)
    names = list(cases)
    values: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for number in range(most_rounds + 1):
        spent = time.perf_counter() - begin
        if number > FEWEST_ROUNDS and spent > seconds:
            break
        for name in rng.permutation(names).tolist():
            value = cases[name]()
            if number:
                values[name].append(value)
        on_round(min(1.0, (time.perf_counter() - begin) / seconds) if seconds else 1.0)
    return {name: np.array(each) for name, each in values.items()}


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin
