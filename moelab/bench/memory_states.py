"""Which of the steps measured beside a read can be told from a change of the machine.

The memory of a shared virtual machine has states (35 and 60 GB/s on one of ours) that change within a run, sometimes
between a step and the read beside it. So every step has a read before and one after it: it counts where the two agree,
and steps of different states are reported apart. Knows rates; does not know what was measured. Floor 6.
"""

from __future__ import annotations

import numpy as np

CHANGED = 0.1  # a step is left out whose two reads differ by more than this part of the slower
APART = 1.25  # rates (95th over 5th percentile) that differ by less are one state


def unchanged(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """bool [n]: the reads before and after a step, seconds a byte [n], agree."""
    agree: np.ndarray = np.abs(before - after) <= CHANGED * np.minimum(before, after)
    return agree


def states(rates: np.ndarray) -> list[np.ndarray]:
    """Masks [n] of the steps of each state, the slower first, by their read rates [n]; one where there is one state."""
    if len(rates) == 0:
        return []
    low, high = np.percentile(rates, (5, 95))
    if high < APART * low:
        return [np.ones(len(rates), bool)]
    slow = rates < np.sqrt(low * high)
    return [slow, ~slow]
