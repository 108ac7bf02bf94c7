"""compare: intervals over requests, and who ties with the best.  Floor 5.

Clusters of requests are drawn again, all policies by the same draws, so that differences are paired. With several
policies against one, intervals are widened (Bonferroni), for the best of many looks better than it is. Requests are
taken for exchangeable, although each finds the fast tier as the one before left it. One cluster: no interval, no ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.analysis.bootstrap import LEVEL, basic_interval, resamples
from moelab.findings.counted import Counted

_DIGITS = 12  # so that equal policies differ by 0, not by rounding


@dataclass(frozen=True)
class Interval:
    """``low`` and ``high`` are NaN where there is one cluster."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.low))


class Bootstrap:
    """Draws of clusters, the same for everybody; ``num_samples`` of them by ``seed``."""

    def __init__(self, num_clusters: int, num_samples: int, seed: int):
        self.weights = resamples(num_clusters, num_samples, seed).astype(np.float64)

    def _samples(self, one: Counted, what: str) -> np.ndarray:
        above, below = one.ratio(what)
        return (self.weights @ above) / np.maximum(1, self.weights @ below)

    def interval(self, one: Counted, what: str) -> Interval:
        low, high = basic_interval(np.array(one.value(what)), self._samples(one, what))
        return Interval(one.value(what), float(low), float(high))

    def difference(self, one: Counted, other: Counted, what: str, num_comparisons: int = 1) -> Interval:
        """``one`` minus ``other``, paired; the level is widened for ``num_comparisons`` of them."""
        value = round(one.value(what) - other.value(what), _DIGITS)
        samples = np.round(self._samples(one, what) - self._samples(other, what), _DIGITS)
        low, high = basic_interval(np.array(value), samples, 1 - (1 - LEVEL) / num_comparisons)
        return Interval(value, float(low), float(high))

    def ties(self, all_of_them: Sequence[Counted], best: Counted, what: str = "reads") -> list[Counted]:
        """Whoever's difference to ``best`` may be 0 or less; nobody where there is no interval."""
        others = [one for one in all_of_them if one is not best]
        if not len(self.weights):
            return []
        return [one for one in others if self.difference(one, best, what, len(others)).low <= 0]
