"""FastTierReport: what a live fast tier did, by phase and layer, in the words of the simulator's result.  Floor 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.summary import summary_html, summary_text
from moelab.domain.trace import Phase
from moelab.policies.counts import EVICTIONS, HITS, LATE, MISSES, PREFETCHES, ROUTED_HITS, ROUTINGS, UPLOADS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class FastTierReport:
    """Counts since the engine got its plan.

    `counts` int64 [phases, L, 8] (columns in `policies.counts`), `num_layer_steps` int64 [phases, L]: requests that
    routed something. `num_copied` experts crossed the link on the policy's word, `num_superseded` were evicted before
    their copy began, so that `uploads + prefetches` is the sum of both; `num_initial_copies` are the plan's own.
    `slot_bytes`: device memory of all slots. `emulated`: the CPU stands in for the device. `late_copies`: what a hit
    whose copy is under way does (`home` or `wait`; `never`: no copy is made, all counts are on paper); `products`:
    torch's type of the activations. `late_bytes_of_node` [N]: of what the kernels read on each node, the part that they
    read for hits whose copy was under way; the rest is what the simulator predicts, where experts have one copy.
    """

    policy: str
    plan: str
    device: str
    emulated: bool
    late_copies: str
    weight_format: str
    products: str
    num_slots: int
    slot_bytes: int
    num_steps: int
    num_failed_steps: int
    num_initial_copies: int
    num_copied: int
    num_superseded: int
    link_bytes: int
    late_bytes_of_node: tuple[int, ...]
    counts: np.ndarray
    num_layer_steps: np.ndarray

    def _sum(self, column: int) -> int:
        return int(self.counts[:, :, column].sum())

    @property
    def hits(self) -> int:
        """Distinct experts of a layer-step that had a slot before it, late ones among them."""
        return self._sum(HITS)

    @property
    def misses(self) -> int:
        return self._sum(MISSES)

    @property
    def uploads(self) -> int:
        return self._sum(UPLOADS)

    @property
    def prefetches(self) -> int:
        return self._sum(PREFETCHES)

    @property
    def evictions(self) -> int:
        return self._sum(EVICTIONS)

    @property
    def late(self) -> int:
        """Hits whose copy had not arrived: they ran from home, or were waited for."""
        return self._sum(LATE)

    @property
    def hit_rate_per_routing(self) -> float | None:
        return _ratio(self._sum(ROUTED_HITS), self._sum(ROUTINGS))

    @property
    def hit_rate_per_request(self) -> float | None:
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def reads_per_layer_step(self) -> float | None:
        """Distinct misses + uploads + prefetches + late, per layer-step, as decided: superseded copies were not read.

        Late hits count where they ran from home.
        """
        late = self.late if self.late_copies == "home" else 0
        return _ratio(self.misses + self.uploads + self.prefetches + late, int(self.num_layer_steps.sum()))

    def summary(self) -> dict[str, Any]:
        """Plain values, units in the names."""
        return {
            "policy": self.policy,
            "plan": self.plan,
            "device": self.device,
            "emulated": self.emulated,
            "weight_format": self.weight_format,
            "products": self.products,
            "num_slots": self.num_slots,
            "slot_bytes": self.slot_bytes,
            "steps": self.num_steps,
            "failed_steps": self.num_failed_steps,
            "hits": self.hits,
            "misses": self.misses,
            "late": self.late,
            "late_copies": self.late_copies,
            "uploads": self.uploads,
            "prefetches": self.prefetches,
            "evictions": self.evictions,
            "copied": self.num_copied,
            "superseded": self.num_superseded,
            "initial_copies": self.num_initial_copies,
            "link_bytes": self.link_bytes,
            "late_bytes_of_node": list(self.late_bytes_of_node),
            "hit_rate_per_routing": self.hit_rate_per_routing,
            "hit_rate_per_request": self.hit_rate_per_request,
            "reads_per_layer_step": self.reads_per_layer_step,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row for each phase that occurred and each layer."""
        import pandas as pd

        rows = []
        for phase in Phase:
            if not self.num_layer_steps[phase].any():
                continue
            for layer, counts in enumerate(self.counts[phase].tolist()):
                rows.append(
                    {
                        "policy": self.policy,
                        "device": self.device,
                        "emulated": self.emulated,
                        "phase": phase.name.lower(),
                        "layer": layer,
                        "layer_steps": int(self.num_layer_steps[phase, layer]),
                        "distinct_hits": counts[HITS],
                        "distinct_misses": counts[MISSES],
                        "late": counts[LATE],
                        "uploads": counts[UPLOADS],
                        "prefetches": counts[PREFETCHES],
                        "evictions": counts[EVICTIONS],
                        "hit_rate_per_routing": _ratio(counts[ROUTED_HITS], counts[ROUTINGS]),
                        "hit_rate_per_request": _ratio(counts[HITS], counts[HITS] + counts[MISSES]),
                    }
                )
        return pd.DataFrame(rows)

    def _shown(self) -> dict[str, str]:
        return {name.replace("_", " "): _text(value) for name, value in self.summary().items()}

    def __repr__(self) -> str:
        return summary_text("FastTierReport", self._shown())

    def _repr_html_(self) -> str:
        return summary_html("FastTierReport", self._shown())


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
