"""ShadowResult: what the candidates would have hit, missed and read so far.  Floor 4.

It grows while the engine runs. Intervals are a bootstrap (``analysis.bootstrap``) over clusters: requests, or those
that shared steps, which can only be drawn together. Fewer than ``FEWEST_CLUSTERS`` have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.analysis.bootstrap import FEWEST_CLUSTERS, basic_interval, resamples
from moelab.domain.trace import Phase
from moelab.policies.counts import EVICTIONS, HITS, LAYER_STEPS, MISSES, PREFETCHES, ROUTED_HITS, ROUTINGS, UPLOADS
from moelab.shadows.candidate import Candidate

if TYPE_CHECKING:
    import pandas as pd

RATES = {
    "reads_per_layer_step": ((MISSES, UPLOADS, PREFETCHES), (LAYER_STEPS,)),
    "hit_rate_per_request": ((HITS,), (HITS, MISSES)),
    "hit_rate_per_routing": ((ROUTED_HITS,), (ROUTINGS,)),
}
"""Columns over columns; no copy of a shadow is late."""


class ShadowResult:
    """One row for each candidate. ``num_steps`` and ``num_requests`` count what was seen."""

    def __init__(self, model: str, candidates: Sequence[Candidate], num_samples: int, seed: int) -> None:
        self.model = model
        self.candidates = list(candidates)
        self.num_samples, self.seed = num_samples, seed
        self.num_steps = 0
        self._joined_with: dict[int, int] = {}

    def join(self, requests: Sequence[int]) -> None:
        """These requests had tokens in one step."""
        first = self._cluster(requests[0])
        for request in requests:
            self._joined_with[self._cluster(request)] = first

    def _cluster(self, request: int) -> int:
        """The request that stands for all that are joined with this one."""
        while (other := self._joined_with.setdefault(request, request)) != request:
            request = other
        return request

    @property
    def num_clusters(self) -> int:
        return len({self._cluster(request) for request in self.candidates[0].of_request})

    @property
    def num_requests(self) -> int:
        return len(self.candidates[0].of_request)

    def rows(self, phase: str | None = None) -> list[dict[str, Any]]:
        """Plain values; ``phase``: ``prefill`` or ``decode`` only. ValueError for another name."""
        names = [each.name.lower() for each in Phase]
        if phase is not None and phase not in names:
            raise ValueError(f"phase is {phase!r}, expected one of {', '.join(names)}")
        chosen = slice(None) if phase is None else slice(names.index(phase), names.index(phase) + 1)
        return [self._row(each, phase, chosen) for each in self.candidates]

    def _row(self, candidate: Candidate, phase: str | None, chosen: slice) -> dict[str, Any]:
        plan, tier = candidate.plan, candidate.plan.fast_tiers[0]
        capacity = tier.slots_per_layer or tier.slots or tier.capacity_bytes
        row: dict[str, Any] = {
            "candidate": candidate.name,
            "policy": candidate.session.policy.name,
            "capacity": capacity if not isinstance(capacity, tuple) or len(set(capacity)) > 1 else capacity[0],
            "phase": phase or "all",
            "requests": self.num_requests,
            "clusters": self.num_clusters,
        }
        shape = (-1, candidate.session.num_layers, LAYER_STEPS + 1)
        counts = np.array([each[chosen].sum(0) for each in candidate.of_request.values()]).reshape(shape)
        clusters = np.unique([self._cluster(each) for each in candidate.of_request], return_inverse=True)[1]
        by_cluster, by_layer = np.zeros((self.num_clusters, counts.shape[-1])), counts.sum(0)
        np.add.at(by_cluster, clusters, counts.sum(1))
        num_samples = self.num_samples if self.num_clusters >= FEWEST_CLUSTERS else 0
        weights = resamples(self.num_clusters, num_samples, self.seed)
        for name, (above, below) in RATES.items():
            part, whole = by_cluster[:, above].sum(1), by_cluster[:, below].sum(1)
            value = part.sum() / whole.sum() if whole.sum() else np.nan
            with np.errstate(invalid="ignore"):  # a resample of requests without this phase
                low, high = basic_interval(np.array(value), (weights @ part) / (weights @ whole))
            row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
        reads = by_layer[:, (MISSES, UPLOADS, PREFETCHES)].sum(1)
        copies = by_layer[:, (UPLOADS, PREFETCHES)].sum(1)
        total = np.rint(by_layer.sum(0)).astype(int)
        row |= {
            "uploads": int(total[UPLOADS]),
            "prefetches": int(total[PREFETCHES]),
            "evictions": int(total[EVICTIONS]),
            "home_bytes": float(reads @ np.array(plan.format_of_tier["node0"].expert_bytes)),
            "link_bytes": float(copies @ np.array(plan.format_of_tier[tier.tier].expert_bytes)),
        }
        return row

    def to_frame(self, phase: str | None = None) -> pd.DataFrame:
        """One row for each candidate: rates with their intervals, counts, bytes."""
        import pandas as pd

        return pd.DataFrame(self.rows(phase))

    def __repr__(self) -> str:
        lines = [f"ShadowResult: {self.model}, {self.num_requests} requests, {self.num_steps} steps"]
        for row in self.rows():
            reads, low, high = (row[f"reads_per_layer_step{end}"] for end in ("", "_low", "_high"))
            interval = f"{low:.3f} to {high:.3f}" if np.isfinite(low) else f"{self.num_clusters} clusters: no interval"
            lines.append(f"  {row['candidate']}: {reads:.3f} reads per layer-step ({interval})")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<b>ShadowResult</b>: {self.model}, {self.num_steps} steps" + str(self.to_frame().to_html(index=False))
