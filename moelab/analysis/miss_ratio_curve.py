"""miss_ratio_curve: what an LRU of every capacity would hit, per layer, in one pass.  Floor 2.

From set-request reuse distances (``reuse``): a use hits at capacity C where its distance is below C.
Exactly equal to the simulated policy ``lru`` with slots per layer

* with ``overflow=True`` at every capacity: a layer whose last set was larger than C holds that whole set
  until its next request (demand fill with overflow while pinned, parameter ``overflow`` of the plan);
* with ``overflow=False`` at every capacity from ``exact_from`` on, the largest set of the layer. Below it the
  slots cannot hold what one request uses, pinned experts block the stack order, no one-pass curve is
  exact, and which policy runs hardly matters; simulate those few capacities instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import types

from moelab.analysis.reuse import FIRST_USE, reuse_distances
from moelab.compiled_on_use import on_use
from moelab.domain.trace import Trace
from moelab.policies.requests import Requests

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class MissRatioCurve:
    """Hits at every capacity 0..E of each layer (counts, so that layers and traces can be added).

    ``hits_per_request`` and ``hits_per_routing`` int64 [L, E + 1]; ``uses_per_request`` (distinct) and
    ``uses_per_routing`` int64 [L]; ``exact_from`` int64 [L], see the module; ``phase`` the counted phase.
    """

    model: str
    synthetic: bool
    phase: str | None
    overflow: bool
    hits_per_request: np.ndarray
    hits_per_routing: np.ndarray
    uses_per_request: np.ndarray
    uses_per_routing: np.ndarray
    exact_from: np.ndarray

    def miss_ratio_per_request(self) -> np.ndarray:
        """float64 [E + 1]: over all layers at the same number of slots each, distinct uses."""
        return 1 - self.hits_per_request.sum(0) / max(1, self.uses_per_request.sum())

    def miss_ratio_per_routing(self) -> np.ndarray:
        """float64 [E + 1]: over all layers at the same number of slots each, every routing."""
        return 1 - self.hits_per_routing.sum(0) / max(1, self.uses_per_routing.sum())

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and capacity."""
        import pandas as pd

        num_layers, num_capacities = self.hits_per_request.shape
        slots = np.tile(np.arange(num_capacities), num_layers)
        exact_from = np.repeat(np.zeros_like(self.exact_from) if self.overflow else self.exact_from, num_capacities)
        return pd.DataFrame(
            {
                "routing": "synthetic" if self.synthetic else "recorded",
                "phase": self.phase or "all",
                "layer": np.repeat(np.arange(num_layers), num_capacities),
                "slots": slots,
                "miss_ratio_per_request": (1 - self.hits_per_request / self.uses_per_request[:, None].clip(1)).ravel(),
                "miss_ratio_per_routing": (1 - self.hits_per_routing / self.uses_per_routing[:, None].clip(1)).ravel(),
                "exact": slots >= exact_from,
            }
        )

    def summary(self) -> pd.DataFrame:
        """All layers together at 5, 10, 20, 30, 50 and 100% of the experts."""
        import pandas as pd

        num_experts = self.hits_per_request.shape[1] - 1
        rows = []
        for percent in (5, 10, 20, 30, 50, 100):
            slots = max(1, round(percent * num_experts / 100))
            rows.append(
                {
                    "slots_per_layer": slots,
                    "miss_ratio_per_request": self.miss_ratio_per_request()[slots],
                    "miss_ratio_per_routing": self.miss_ratio_per_routing()[slots],
                    "exact": bool(self.overflow or slots >= self.exact_from.max()),
                }
            )
        return pd.DataFrame(rows)

    def _title(self) -> str:
        kind = "synthetic" if self.synthetic else "recorded"
        return f"MissRatioCurve of {self.model} ({kind}, LRU per layer, phase {self.phase or 'all'})"

    def __repr__(self) -> str:
        return f"{self._title()}\n" + self.summary().to_string(index=False)

    def _repr_html_(self) -> str:
        return f"<b>{self._title()}</b>" + self.summary().to_html(index=False, float_format="%.4f")


def miss_ratio_curve(
    trace: Trace, *, phase: str | None = None, overflow: bool = False, requests: Requests | None = None
) -> MissRatioCurve:
    """LRU at all capacities; the whole trace warms the stack, ``phase`` says whose uses are counted."""
    requests = requests if requests is not None else Requests.of_trace(trace)
    distances = reuse_distances(trace, requests=requests).distances
    shape = (requests.num_layers, requests.num_experts + 1)
    per_request, per_routing = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    uses_per_request, uses_per_routing = np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)
    _count(
        requests.offsets, distances, requests.token_counts, requests.steps_of_phase(phase), overflow,
        per_request, per_routing, uses_per_request, uses_per_routing,
    )  # fmt: skip
    return MissRatioCurve(
        model=trace.header.model,
        synthetic=trace.header.synthetic,
        phase=phase,
        overflow=overflow,
        hits_per_request=per_request.cumsum(1),
        hits_per_routing=per_routing.cumsum(1),
        uses_per_request=uses_per_request,
        uses_per_routing=uses_per_routing,
        exact_from=requests.set_sizes.max(0, initial=0),
    )


_i64 = types.int64


@on_use(
    types.void(
        _i64[::1], types.int32[::1], types.int32[::1], types.boolean[::1], types.boolean,
        _i64[:, ::1], _i64[:, ::1], _i64[::1], _i64[::1],
    )
)  # fmt: skip
def _count(
    offsets, distances, token_counts, is_counted, overflow, per_request, per_routing, uses_per_request, uses_per_routing
):
    """Uses by layer and smallest capacity at which they hit: distance + 1, or 0 where overflow holds them.

    With overflow a layer holds its whole last set until its next request, whatever the capacity.
    """
    num_layers = len(uses_per_request)
    for request in range(len(offsets) - 1):
        layer = request % num_layers
        if not is_counted[request // num_layers]:
            continue
        size_before = 0
        if overflow and request >= num_layers:
            size_before = offsets[request - num_layers + 1] - offsets[request - num_layers]
        for i in range(offsets[request], offsets[request + 1]):
            uses_per_request[layer] += 1
            uses_per_routing[layer] += token_counts[i]
            if distances[i] != FIRST_USE:
                column = 0 if distances[i] < size_before else distances[i] + 1
                per_request[layer, column] += 1
                per_routing[layer, column] += token_counts[i]
