"""reuse_share: what part of the uses returns within 5, 10, 20, 30, 50% of a layer's experts.  Floor 2.

A use whose set-request reuse distance (``reuse``) is below C hits an LRU of C slots, so these are also that cache's
hit rates per request, with an interval by drawing requests again. The order of the requests stays as it was
recorded: the interval covers which requests were seen, not in which order they ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.analysis.bootstrap import NUM_SAMPLES, RequestLoads, basic_interval, resamples
from moelab.analysis.reuse import FIRST_USE, reuse_distances
from moelab.domain.trace import Trace
from moelab.policies.requests import Requests

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS = (0.05, 0.10, 0.20, 0.30, 0.50)


@dataclass(frozen=True, eq=False)
class ReuseShare:
    """``slots`` int64 [F] per layer; ``share``, ``low``, ``high`` float64 [F] over all layers; ``first_uses`` 0 to 1.

    The interval is NaN with one request, and where steps hold tokens of several (then a set belongs to none).
    """

    model: str
    synthetic: bool
    slots: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first_uses: float

    def to_frame(self) -> pd.DataFrame:
        """One row for each number of slots."""
        import pandas as pd

        columns: dict[str, Any] = {
            "routing": "synthetic" if self.synthetic else "recorded",
            "percent_of_experts": [100 * f for f in FRACTIONS],
            "slots_per_layer": self.slots,
            "uses_within": self.share,
            "low": self.low,
            "high": self.high,
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        return f"ReuseShare of {self.model}\n" + self.to_frame().to_string(index=False)

    def _repr_html_(self) -> str:
        return "<b>ReuseShare</b>" + self.to_frame().to_html(index=False, float_format="%.3f", na_rep="")


def reuse_share(
    trace: Trace,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    loads: RequestLoads | None = None,
) -> ReuseShare:
    """Share of distinct uses by distance; the whole trace in order. ``loads`` where they were built before."""
    loads = loads if loads is not None else RequestLoads.of_trace(trace)
    requests = Requests.of_trace(trace)
    distances = reuse_distances(trace, requests=requests).distances
    slots = np.array([max(1, round(f * trace.header.num_experts)) for f in FRACTIONS])
    cluster = loads.cluster_of_token[requests.first_token[:-1]]
    mixed = (loads.cluster_of_token != np.repeat(cluster, np.diff(requests.first_token))).any()
    entries = np.diff(requests.offsets)
    step = np.repeat(np.arange(requests.num_requests), entries) // requests.num_layers
    of_use = cluster[step]
    uses = np.bincount(of_use, minlength=loads.num_clusters).astype(np.float64)
    within = np.stack(
        [
            np.bincount(of_use[(distances != FIRST_USE) & (distances < c)], minlength=loads.num_clusters)
            for c in slots
        ],
        axis=1,
    ).astype(np.float64)  # fmt: skip
    share = within.sum(0) / max(1, uses.sum())
    weights = resamples(loads.num_clusters, 0 if mixed else num_samples, seed)
    samples = (weights @ within) / (weights @ uses)[:, None] if len(weights) else np.zeros((0, len(slots)))
    low, high = basic_interval(share, samples)
    first_uses = float((distances == FIRST_USE).mean()) if len(distances) else float("nan")
    return ReuseShare(trace.header.model, trace.header.synthetic, slots, share, low, high, first_uses)
