"""expert_miss_ratio: what an LRU of any capacity misses of each single expert, and of any choice of experts.  Floor 2.

The same distances as ``miss_ratio_curve`` (a use hits at C slots where its distance is below C), kept by expert: the
map layer x expert at one capacity, and the curve of the experts that one chooses on it. Exact where that curve is:
from ``exact_from`` on; below, where a prompt's set does not fit, decode steps differ little (nano: 0.2 points). Does
not know pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.analysis.reuse import FIRST_USE, reuse_distances
from moelab.domain.trace import Trace
from moelab.policies.requests import Requests


@dataclass(frozen=True, eq=False)
class ExpertMissRatio:
    """Every counted use: ``key`` int64 [N] (layer * E + expert) and ``needed`` int32 [N], the fewest slots that hit.

    A first use is never hit: ``needed`` is E + 1. ``shape`` is (L, E); ``uses`` int64 [L, E]; ``exact_from`` int64 [L].
    """

    shape: tuple[int, int]
    key: np.ndarray
    needed: np.ndarray
    uses: np.ndarray
    exact_from: np.ndarray

    def at(self, slots: int) -> np.ndarray:
        """Miss ratio per request of each expert at ``slots`` per layer: float64 [L, E], NaN where it is not used.

        ValueError for slots below 0 or above E.
        """
        if not 0 <= slots <= self.shape[1]:
            raise ValueError(f"slots is {slots}, expected 0 to {self.shape[1]}, the experts of a layer")
        hits = np.bincount(self.key[self.needed <= slots], minlength=self.uses.size).reshape(self.shape)
        return np.divide(self.uses - hits, self.uses, out=np.full(self.shape, np.nan), where=self.uses > 0)

    def curve(self, experts: np.ndarray | None = None) -> np.ndarray:
        """Miss ratio at 0 to E slots per layer: float64 [E + 1], of the uses of ``experts`` (bool [L, E]; all).

        NaN where they are never used. ValueError for another shape.
        """
        needed, total = self.needed, int(self.uses.sum())
        if experts is not None:
            mask = np.asarray(experts, bool)
            if mask.shape != self.shape:
                raise ValueError(f"experts is {mask.shape}, expected layers x experts {self.shape}")
            needed, total = needed[mask.ravel()[self.key]], int(self.uses[mask].sum())
        hits = np.bincount(needed, minlength=self.shape[1] + 2)[: self.shape[1] + 1].cumsum()
        return 1 - hits / total if total else np.full(self.shape[1] + 1, np.nan)


def expert_miss_ratio(trace: Trace, *, phase: str | None = None, requests: Requests | None = None) -> ExpertMissRatio:
    """LRU with slots per layer; the whole trace warms it, ``phase`` says whose uses are counted."""
    requests = requests if requests is not None else Requests.of_trace(trace)
    distances = reuse_distances(trace, requests=requests).distances
    num_layers, num_experts = requests.num_layers, requests.num_experts
    clock = np.repeat(np.arange(requests.num_requests), np.diff(requests.offsets))
    step, layer = np.divmod(clock, num_layers)
    counted = requests.steps_of_phase(phase)[step]
    key = (layer * num_experts + requests.experts)[counted]
    needed = np.where(distances == FIRST_USE, num_experts + 1, distances + 1)[counted].astype(np.int32)
    uses = np.bincount(key, minlength=num_layers * num_experts).reshape(num_layers, num_experts)
    return ExpertMissRatio((num_layers, num_experts), key, needed, uses, requests.set_sizes.max(0, initial=0))
