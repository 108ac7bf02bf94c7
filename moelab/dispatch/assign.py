"""assign: ``dispatch`` for Python callers: arrays made, arguments checked, the answer named.  Floor 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.dispatch.dispatch import dispatch, scratch_length
from moelab.dispatch.lower_bound import lower_bound
from moelab.dispatch.signature import EXACT, MOST_TIERS, NO_COPY


@dataclass(frozen=True, eq=False)
class Assignment:
    """``tier_of`` int32 [M], ``loads`` float64 [N].

    ``is_exact`` is False where the search was cut off: then the optimum lies between ``bound`` and ``maximum``; else
    ``bound`` is the maximum.
    """

    tier_of: np.ndarray
    loads: np.ndarray
    is_exact: bool
    bound: float

    @property
    def maximum(self) -> float:
        """Time of the slowest tier, in units of slowness x bytes."""
        return float(self.loads.max())


def assign(
    masks: Sequence[int] | np.ndarray,
    *,
    num_tiers: int,
    sizes: Sequence[int] | np.ndarray | int = 1,
    slowness: Sequence[float] | np.ndarray | float = 1.0,
) -> Assignment:
    """Serve M jobs with copies on the tiers of ``masks`` [M]; ``sizes`` [M] bytes and ``slowness`` [N] or one number.

    Raises ``ValueError`` for a job without a copy, a tier that is not there, a size or slowness that is not positive.
    """
    if not 1 <= num_tiers <= MOST_TIERS:
        raise ValueError(f"num_tiers is {num_tiers}, expected 1 to {MOST_TIERS}")
    of_job = np.array(masks, np.int64)
    of_size = np.array(np.broadcast_to(np.asarray(sizes, np.int64), of_job.shape))
    of_tier = np.array(np.broadcast_to(np.asarray(slowness, np.float64), num_tiers))
    if (of_size < 1).any() or not (of_tier > 0).all():
        raise ValueError("got a size or a slowness that is not positive, expected bytes and time per byte above 0")
    tier_of, loads = np.empty(len(of_job), np.int32), np.empty(num_tiers)
    scratch = np.empty(scratch_length(len(of_job), num_tiers), np.int64)
    answer = dispatch(of_job, of_size, of_tier, tier_of, loads, scratch)
    if answer == NO_COPY:
        wrong = np.flatnonzero((of_job <= 0) | (of_job >= 1 << num_tiers))
        raise ValueError(
            f"job {wrong[0]} has copies on mask {int(of_job[wrong[0]]):#b}, expected one or more of the {num_tiers} "
            "tiers: give every active expert a copy"
        )
    bound = float(loads.max()) if answer == EXACT else lower_bound(of_job, of_size, of_tier)
    return Assignment(tier_of, loads, answer == EXACT, bound)
