"""Two implementations by turns, a read before, between and after them: who is faster, by rounds whose reads agree.

A round is one step of each. Its ratio is one of neighbours only if the memory was the same for both, so a round whose
three reads differ (``memory_states``) is left out and counted. Who goes first changes from round to round: what drifts
falls on both alike. Knows neither peers nor kernels, only something to call. Floor 6.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from moelab.bench.memory_states import PairedSteps, beside_reads, between, pair_steps, states_of
from moelab.bench.read_reference import Read

MIN_ROUNDS = 5
Step = tuple[np.ndarray, np.ndarray, np.ndarray]  # x [B, H], expert ids [B, K], gate weights [B, K]


class Side(NamedTuple):
    """``forward`` takes a step; others' workers get ``before_s`` to fall asleep before it, its own ``after_s``."""

    forward: Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
    before_s: float = 0.0
    after_s: float = 0.0


@dataclass(frozen=True)
class Rounds:
    """``seconds`` [2, R] of both sides, ``num_distinct`` experts [2, R] of their steps, ``place`` [2, R]: which step of
    the run each was; step i lies between ``reads`` i and i + 1 of 2 R + 1."""

    seconds: np.ndarray
    num_distinct: np.ndarray
    place: np.ndarray
    reads: tuple[Read, ...]

    @property
    def agree(self) -> np.ndarray:
        """bool [R]: the three reads of the round differ by at most ``MAX_READ_DIFFERENCE``, each from each."""
        rates = np.array([read.gb_per_s for read in self.reads])
        loops = np.array([read.choice for read in self.reads])
        return pair_steps(rates, loops).kept.reshape(-1, 2).all(1) & pair_steps(rates[::2], loops[::2]).kept

    @property
    def kept(self) -> np.ndarray:
        """bool [R]: those that agree; all where fewer than ``MIN_ROUNDS`` do: few figures of many are no better."""
        agree = self.agree
        return agree if agree.sum() >= MIN_ROUNDS else np.ones_like(agree)

    def ratios(self) -> np.ndarray:
        """Time of the first side by that of the second, of the rounds kept."""
        return (self.seconds[0] / self.seconds[1])[self.kept]

    def beside_reads(self, side: int, rates: np.ndarray) -> dict[str, Any]:
        """The fields of a row that compare ``rates`` [R], GB/s of a side, with the reads before and after each step."""
        kept, num_agreeing = self.kept, int(self.agree.sum())
        reads = np.array([read.gb_per_s for read in self.reads])
        place = self.place[side][kept]
        reference = between(reads[place], reads[place + 1])
        row = beside_reads(PairedSteps(kept, reference, states_of(reference)), rates)
        return row | {"num_agreeing": num_agreeing if num_agreeing < MIN_ROUNDS else None}


def take_rounds(
    sides: tuple[Side, Side], step: Callable[[], Step], read: Callable[[np.ndarray, np.ndarray], Read], seconds: float
) -> Rounds:
    """``seconds`` of rounds, ``MIN_ROUNDS`` at least, up to twice the time and a second until as many agree.

    ``step`` makes the next one, outside the clock; ``read`` gets the experts of the step before and of the one after.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    distinct: tuple[list[int], list[int]] = ([], [])
    place: tuple[list[int], list[int]] = ([], [])
    started = time.perf_counter()
    coming = step()
    reads = [read(coming[1], coming[1])]
    order = (0, 1)

    def rounds() -> Rounds:
        return Rounds(np.array(taken), np.array(distinct), np.array(place), tuple(reads))

    while _goes_on(time.perf_counter() - started, seconds, rounds):
        for side in order:
            x, ids, gates = coming
            time.sleep(sides[side].before_s)
            start = time.perf_counter()
            sides[side].forward(x, ids, gates)
            taken[side].append(time.perf_counter() - start)
            time.sleep(sides[side].after_s)
            place[side].append(len(reads) - 1)
            distinct[side].append(len(np.unique(ids)))
            coming = step()
            reads.append(read(ids, coming[1]))
        order = order[::-1]
    return rounds()


def _goes_on(elapsed_s: float, seconds: float, rounds: Callable[[], Rounds]) -> bool:
    so_far = rounds()
    if so_far.seconds.shape[1] < MIN_ROUNDS or elapsed_s < seconds:
        return True
    return elapsed_s < 2 * seconds + 1 and int(so_far.agree.sum()) < MIN_ROUNDS
