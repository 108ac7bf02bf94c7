"""Steps beside the reads before and after them: which are compared, and in which of two states of the memory.

The memory of a shared machine can have two rates that change within a second (here 32 and 62 GB/s for two cores). A
step whose two reads differ has seen the change, or something like it, and is left out. Knows numbers only: not what a
step was, nor what was read. Floor 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Reads before and after a step that differ by more percent of the smaller: the step is not compared. Chosen for
# states that lie 80% apart (31 to 36, 56 to 66 GB/s); neighbours in one state were a few percent apart.
MAX_READ_DIFFERENCE = 15.0
# Two states: medians at least this apart, and each narrow beside the gap between them.
MIN_STATE_RATIO, MAX_STATE_WIDTH = 1.25, 0.25
MIN_STEPS_OF_STATE = 3


@dataclass(frozen=True)
class PairedSteps:
    """Steps that are compared: ``kept`` bool [S] of all, and of the kept ones ``reference`` [S'], the read beside each.

    ``state`` int [S']: 0 the slow one, 1 the fast one; ``None`` where the reads are of one state, or of no clear two.
    """

    kept: np.ndarray
    reference: np.ndarray
    state: np.ndarray | None

    @property
    def num_left_out(self) -> int:
        return int((~self.kept).sum())


def pair_steps(rates: np.ndarray, loops: np.ndarray) -> PairedSteps:
    """``rates`` [S + 1]: GB/s of the reads, step i between read i and i + 1; ``loops`` [S + 1]: which choice of a loop.

    The read beside a step takes the mean of the two times. Reads by loops that were not chosen together say nothing of
    a step: it is left out as well.
    """
    before, after = np.asarray(rates[:-1], float), np.asarray(rates[1:], float)
    difference = 100 * np.abs(before - after) / np.minimum(before, after)
    kept = (difference <= MAX_READ_DIFFERENCE) & (np.asarray(loops[:-1]) == np.asarray(loops[1:]))
    reference = between(before, after)[kept]
    return PairedSteps(kept, reference, states_of(reference))


def between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """GB/s of a read that takes the mean time of one before and one after."""
    return 2 / (1 / before + 1 / after)


def states_of(rates: np.ndarray) -> np.ndarray | None:
    """0 (slow) or 1 (fast) for each of ``rates`` [S]; ``None`` unless they are clearly two groups.

    The split of least squares of the logarithms; its halves count as states if both have ``MIN_STEPS_OF_STATE``, their
    medians differ by ``MIN_STATE_RATIO`` and the middle half of each is narrower than ``MAX_STATE_WIDTH`` of that.
    """
    if len(rates) < 2 * MIN_STEPS_OF_STATE:
        return None
    logs = np.log(rates)
    ordered = np.sort(logs)
    low_size = np.arange(1, len(ordered))
    low_sum = np.cumsum(ordered)[:-1]
    high_sum, high_size = ordered.sum() - low_sum, len(ordered) - low_size
    # Least squares within is the most between: the sum of size times mean squared.
    split = int(low_size[np.argmax(low_sum**2 / low_size + high_sum**2 / high_size)])
    low, high = ordered[:split], ordered[split:]
    if min(len(low), len(high)) < MIN_STEPS_OF_STATE:
        return None
    gap = float(np.median(high) - np.median(low))
    width = max(float(np.subtract(*np.percentile(half, (75, 25)))) for half in (low, high))
    if gap < np.log(MIN_STATE_RATIO) or width > MAX_STATE_WIDTH * gap:
        return None
    return (logs >= high[0]).astype(int)


def beside_reads(steps: PairedSteps, rates: np.ndarray) -> dict[str, Any]:
    """The fields of a row that compare ``rates`` [S], GB/s of all steps, with their reads; ``None`` without any."""
    if not steps.kept.any():
        nothing = ("read_limit_gb_per_s", "percent_of_read_limit", "percent_quartiles")
        return {**dict.fromkeys(nothing), "num_left_out": steps.num_left_out}
    percent = 100 * rates[steps.kept] / steps.reference
    (low, middle, high), limit = np.percentile(percent, (25, 50, 75)).tolist(), float(np.median(steps.reference))
    row: dict[str, Any] = {
        "read_limit_gb_per_s": limit, "percent_of_read_limit": middle, "percent_quartiles": (low, high),
        "num_left_out": steps.num_left_out,
    }  # fmt: skip
    if steps.state is not None:
        of_state = [steps.state == state for state in (0, 1)]
        thirds = [np.percentile(percent[mask], (25, 50, 75)).tolist() for mask in of_state]
        row |= {
            "read_limit_gb_per_s_per_state": tuple(float(np.median(steps.reference[mask])) for mask in of_state),
            "percent_of_read_limit_per_state": tuple(middle for _, middle, _ in thirds),
            "percent_quartiles_per_state": tuple((low, high) for low, _, high in thirds),
            "num_steps_per_state": tuple(int(mask.sum()) for mask in of_state),
        }
    return row
