"""steadiest: a calibration that met the machine quiet, or the quietest of those that there was time for.  Floor 3.

A machine that others use may be slow for the seconds of one calibration, and then all predictions are wrong until the
next. What a calibration notes of its own rounds (``Spread``) tells such a one. Does not know what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from moelab.calibration.doubts import MOST_WIDTH, width_of
from moelab.domain.machine import Machine


def steadiest(
    measure: Callable[[int], Machine], *, tries: int, most_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Machine:  # fmt: skip
    """``measure(number)`` until one's figures moved by at most ``MOST_WIDTH``, ``tries`` times at most, and never once
    more where it might not end within ``most_seconds`` of the beginning; the one that moved least."""
    begin = clock()
    made = [measure(0)]
    longest = clock() - begin
    while len(made) < tries and width_of(made[-1]) > MOST_WIDTH and clock() - begin + longest <= most_seconds:
        before = clock()
        made.append(measure(len(made)))
        longest = max(longest, clock() - before)
    return min(made, key=width_of)
