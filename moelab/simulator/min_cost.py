"""min_cost: the best any admissions and evictions can do when every upload costs ``price`` hits.  Floor 2.

Oracle for the objective of a hybrid engine: at price 1 it minimises misses + uploads (reads), at price 0 it is MIN with
bypass, with as few uploads as that needs only by chance. Linear program over reuse intervals (facts: interval
scheduling; the FOO bound of Berger, Beckmann and Harchol-Balter 2018 without uploads). For each interval from a use
of an expert to its next use, y = 1 keeps it resident throughout: the next use hits. u >= y - y of the interval
before: it must be uploaded. A hit expert that is not kept stays until the next request of its pool all the
same, since what a request uses cannot be evicted by it: z >= y - y of the interval after. Occupancy
after every request is at most the slots. Maximise sum y - price * sum u. Starts empty; prefetching is not
allowed, so a policy that prefetches can be better.

Solved by HiGHS, one program for each pool; where a solution is fractional (rare) it is solved again in integers.
Tested against brute force. About 0.1 s for 1,000 uses; not for long traces (``num_steps``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.summary import summary_html, summary_text
from moelab.domain.trace import Trace
from moelab.policies.requests import Requests
from moelab.policies.signature import NEVER

if TYPE_CHECKING:
    import pandas as pd

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class MinCost:
    """Optimum over all requests; ``value`` = hits - price * uploads.

    ``num_integer_programs`` pools solved in integers.
    """

    price: float
    hits: int
    misses: int
    uploads: int
    num_layer_steps: int
    num_integer_programs: int
    synthetic: bool

    @property
    def value(self) -> float:
        return self.hits - self.price * self.uploads

    @property
    def hit_rate_per_request(self) -> float:
        """Distinct experts of each set request that were resident before it."""
        return self.hits / max(1, self.hits + self.misses)

    @property
    def reads_per_layer_step(self) -> float:
        """Distinct misses + uploads, per layer-step."""
        return (self.misses + self.uploads) / max(1, self.num_layer_steps)

    def summary(self) -> dict[str, Any]:
        """Plain values, units in the names."""
        return {
            "routing": "synthetic" if self.synthetic else "recorded",
            "price": self.price,
            "reads_per_layer_step": self.reads_per_layer_step,
            "hit_rate_per_request": self.hit_rate_per_request,
            "distinct_hits": self.hits,
            "distinct_misses": self.misses,
            "uploads": self.uploads,
            "layer_steps": self.num_layer_steps,
            "integer_programs": self.num_integer_programs,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        return pd.DataFrame([self.summary()])

    def __repr__(self) -> str:
        return summary_text("MinCost", self.summary())

    def _repr_html_(self) -> str:
        return summary_html("MinCost", self.summary())


def min_cost(
    trace: Trace,
    *,
    slots_per_layer: int | None = None,
    slots: int | None = None,
    price: float = 1.0,
    num_steps: int | None = None,
    requests: Requests | None = None,
) -> MinCost:
    """Optimum for one fast tier of ``slots_per_layer`` or of ``slots`` for all layers together.

    ``price``: hits that one upload must bring to pay. ``num_steps``: only the first forward passes. Raises
    ``ValueError`` unless exactly one capacity is given, or for a negative price.
    """
    if (slots_per_layer is None) == (slots is None):
        raise ValueError("min_cost got both or neither of slots_per_layer and slots, expected exactly one")
    if price < 0:
        raise ValueError(f"price is {price}, expected 0 or more hits an upload")
    requests = requests if requests is not None else Requests.of_trace(trace)
    num_layers, num_experts = requests.num_layers, requests.num_experts
    last_step = requests.num_steps if num_steps is None else min(num_steps, requests.num_steps)
    stop = requests.offsets[last_step * num_layers]
    clock = np.repeat(np.arange(requests.num_requests), np.diff(requests.offsets))[:stop]
    returns = requests.next_use[:stop]
    returns = np.where(returns == NEVER, -1, returns // num_experts)
    returns[returns > (clock[-1] if stop else 0)] = -1  # beyond the last step that counts
    layer, expert = clock % num_layers, requests.experts[:stop]
    hits, uploads, num_integer = 0, 0, 0
    for pool in range(num_layers) if slots_per_layer is not None else (None,):
        mine = slice(None) if pool is None else layer == pool
        capacity = slots if slots_per_layer is None else slots_per_layer
        key = layer[mine] * num_experts + expert[mine]
        got = _solve(clock[mine], returns[mine], key, int(capacity or 0), price)
        hits, uploads, num_integer = hits + got[0], uploads + got[1], num_integer + got[2]
    return MinCost(
        price=price,
        hits=hits,
        misses=int(stop) - hits,
        uploads=uploads,
        num_layer_steps=len(np.unique(clock)),
        num_integer_programs=num_integer,
        synthetic=trace.header.synthetic,
    )


def _solve(
    clock: np.ndarray, returns: np.ndarray, key: np.ndarray, capacity: int, price: float
) -> tuple[int, int, int]:
    """(hits, uploads, 1 if integers were needed) of one pool; uses in order of time."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    is_interval = returns >= 0
    num = int(is_interval.sum())
    if num == 0 or capacity == 0:
        return 0, 0, 0
    times, place = np.unique(clock, return_inverse=True)
    begin, end = place[is_interval], np.searchsorted(times, returns[is_interval])
    owner = key[is_interval]
    order = np.lexsort((begin, owner))
    follows = (owner[order][1:] == owner[order][:-1]) & (begin[order][1:] == end[order][:-1])
    before, after = np.full(num, -1), np.full(num, -1)
    before[order[1:][follows]] = order[:-1][follows]
    after[order[:-1][follows]] = order[1:][follows]
    index = np.arange(num)
    y, u, z, occupied = index, num + index, 2 * num + index, 3 * num + np.arange(len(times))
    rows, columns, values, lower, upper = [], [], [], [], []

    def add(row: np.ndarray, column: np.ndarray, value: float) -> None:
        rows.append(row)
        columns.append(column)
        values.append(np.full(len(row), value))

    for first_row, own, neighbour in ((0, u, before), (num, z, after)):
        add(first_row + index, own, 1)
        add(first_row + index, y, -1)
        has = neighbour >= 0
        add(first_row + index[has], y[neighbour[has]], 1)
        lower.append(np.zeros(num))
        upper.append(np.full(num, np.inf))
    moments = 2 * num + np.arange(len(times))
    add(moments, occupied, 1)
    add(moments[1:], occupied[:-1], -1)
    add(2 * num + begin, y, -1)
    add(2 * num + end, y, 1)
    add(2 * num + end, z, -1)
    goes = end + 1 < len(times)
    add(2 * num + end[goes] + 1, z[goes], 1)
    lower.append(np.zeros(len(times)))
    upper.append(np.zeros(len(times)))
    num_variables = 3 * num + len(times)
    matrix = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(2 * num + len(times), num_variables),
    ).tocsc()
    gain = np.zeros(num_variables)
    gain[y], gain[u] = -1, price
    bounds = Bounds(np.zeros(num_variables), np.concatenate([np.ones(3 * num), np.full(len(times), capacity)]))
    constraint = LinearConstraint(matrix, np.concatenate(lower), np.concatenate(upper))
    for integrality in (0, 1):
        whole = np.concatenate([np.full(3 * num, integrality), np.zeros(len(times))])
        found = milp(gain, constraints=constraint, bounds=bounds, integrality=whole, options={"mip_rel_gap": 0.0})
        if found.x is None:
            raise RuntimeError(f"HiGHS found no optimum: {found.message}; give fewer steps (num_steps)")
        kept = found.x[y]
        if integrality or np.abs(kept - kept.round()).max() < _TOLERANCE:
            break
    kept = kept.round().astype(int)
    earlier = np.where(before >= 0, kept[before], 0)
    return int(kept.sum()), int(np.maximum(kept - earlier, 0).sum()), integrality
