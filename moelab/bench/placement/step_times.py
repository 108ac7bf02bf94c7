"""Times of plans step by step: in each turn every plan runs a step, each another one.  Floor 6.

Neighbours of a virtual machine take its cores for tenths of a second to minutes, and more of them than plans differ
by. A turn is over in a moment: what it finds slow is slow for all plans and can be taken out, what hits single calls
is left out by the median over rounds of the same call. Plans are at different steps, because plans share experts and
one would leave them in the cache for the next. Does not know what plans are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moelab.analysis.bootstrap import resamples

FEWEST_ROUNDS = 5
NUM_SAMPLES = 2000
_AT_ONCE = 50  # resamples
_POLISHES = 4


@dataclass(frozen=True, eq=False)
class StepTimes:
    """``seconds`` float64 [R, P, B]: round, plan, step; ``turn`` int64 [R, P, B]: the turn of the round, 0 to B - 1,
    in which plan p was at step b. Each plan is at each step once in a round."""

    seconds: np.ndarray
    turn: np.ndarray

    @property
    def num_rounds(self) -> int:
        return len(self.seconds)

    @cached_property
    def mean_s(self) -> np.ndarray:
        """float64 [P]: mean over steps of the median over rounds."""
        return _means(self.seconds)

    @cached_property
    def drawn_mean_s(self) -> np.ndarray:
        """float64 [D, P]: ``mean_s`` of rounds drawn again, the same ones for all plans; D is 0 below two rounds."""
        counts = resamples(self.num_rounds, NUM_SAMPLES, 0).astype(np.int64)
        rounds = np.array([np.repeat(np.arange(len(each)), each) for each in counts], np.int64)
        parts = [_means(self.seconds[rounds[at : at + _AT_ONCE]], 1) for at in range(0, len(rounds), _AT_ONCE)]
        return np.concatenate([np.zeros((0, self.seconds.shape[1])), *parts])

    def of(self, plans: np.ndarray) -> StepTimes:
        """Of some plans."""
        return StepTimes(self.seconds[:, plans], self.turn[:, plans])

    def at_one_speed(self) -> StepTimes:
        """Divided by how much slower than usual the plans were in that turn, in the median over plans.

        What is usual for a call is known better once the turns are at one speed, so this is done a few times (median
        polish: Tukey 1977, Exploratory Data Analysis, chapter 11).
        """
        place = np.argsort(self.turn, axis=2)  # [R, P, turn]: the step
        seconds = self.seconds
        for _ in range(_POLISHES):
            relative = np.take_along_axis(seconds / np.median(seconds, axis=0), place, axis=2)
            slowness = np.broadcast_to(np.median(relative, axis=1, keepdims=True), self.turn.shape)
            seconds = seconds / np.take_along_axis(slowness, self.turn, axis=2)
        return StepTimes(seconds, self.turn)


def _means(seconds: np.ndarray, rounds: int = 0) -> np.ndarray:
    return np.median(seconds, axis=rounds).mean(axis=-1)


def by_turns(
    run: Callable[[int, int], float], num_plans: int, num_steps: int, *, seconds: float, seed: int = 0,
    after_round: Callable[[], object] = lambda: None,
) -> StepTimes:  # fmt: skip
    """``run(plan, step)`` returns seconds. In each turn plans come in another order, each at
    another step where there are as many steps; as many rounds as ``seconds``
    allow, at least ``FEWEST_ROUNDS``. The first round warms up and is left out."""
    rng = np.random.default_rng(seed)
    rounds: list[tuple[np.ndarray, np.ndarray]] = []
    begin = time.perf_counter()
    while len(rounds) <= FEWEST_ROUNDS or time.perf_counter() - begin < seconds:
        times, turn = np.empty((num_plans, num_steps)), np.empty((num_plans, num_steps), np.int64)
        ahead = np.resize(rng.permutation(num_steps), num_plans)  # of each plan: how many steps
        for number in range(num_steps):
            for plan in rng.permutation(num_plans).tolist():
                step = (number + ahead[plan]) % num_steps
                times[plan, step], turn[plan, step] = run(plan, step), number
        rounds.append((times, turn))
        after_round()
    times_of_round, turn_of_round = zip(*rounds[1:], strict=True)
    return StepTimes(np.stack(times_of_round), np.stack(turn_of_round))
