"""Time of one call of ``dispatch``, which chooses the replicas of a layer-step.  Floor 6.

`moelab bench dispatch`. A compiled loop calls it for seeded layer-steps with K active experts on N nodes, through the
first-class type that engine and simulator use: half of the experts on all nodes; copies on some nodes, so that earlier
ones must be moved on; and those with unequal sizes, which are searched (beside: the share that was cut off, and how far
above the lower bound those are at most, on average and in the worst).
Gate: 2 microseconds for equal sizes up to K = 16.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numba
import numpy as np

from moelab.bench.result import BenchResult
from moelab.dispatch import SIGNATURE, assign, dispatch, scratch_length

SHAPES = ((4, 2), (8, 2), (16, 2), (8, 4), (16, 4), (16, 8))
NUM_STEPS = 20_000
NUM_SEARCHED = 2_000


def run(seconds: float = 10.0) -> BenchResult:
    """Rows ``{active_experts, nodes, ns_equal_full, ns_equal_some, ns_unequal, bounded_share, ...}``, medians."""
    rows = [_row(num_jobs, num_nodes, seconds / len(SHAPES) / 3) for num_jobs, num_nodes in SHAPES]
    return BenchResult("dispatch, one core, ns for one layer-step (median of repeated passes)", rows)


def _row(num_jobs: int, num_nodes: int, seconds: float) -> dict[str, Any]:
    rng = np.random.default_rng(num_jobs * 100 + num_nodes)
    shape = (NUM_STEPS, num_jobs)
    single = 1 << rng.integers(0, num_nodes, shape)
    full = np.where(rng.random(shape) < 0.5, (1 << num_nodes) - 1, single)
    some = single | 1 << rng.integers(0, num_nodes, shape) | 1 << rng.integers(0, num_nodes, shape)
    equal, unequal = np.ones(num_jobs, np.int64), rng.integers(10, 30, num_jobs)
    unequal_ns = _measure(some, unequal, num_nodes, seconds)
    return {
        "active_experts": num_jobs,
        "nodes": num_nodes,
        "ns_equal_full": _measure(full, equal, num_nodes, seconds),
        "ns_equal_some": _measure(some, equal, num_nodes, seconds),
        "ns_unequal": unequal_ns,
        **_cut_off(some, unequal, num_nodes),
    }


def _cut_off(masks: np.ndarray, sizes: np.ndarray, num_nodes: int) -> dict[str, float]:
    found = [assign(each, num_tiers=num_nodes, sizes=sizes) for each in masks[:NUM_SEARCHED]]
    above = np.array([one.maximum / one.bound - 1 for one in found if not one.is_exact])
    return {
        "bounded_share": len(above) / len(found),
        "bounded_mean_excess": float(above.mean()) if len(above) else 0.0,
        "bounded_most_excess": float(above.max(initial=0.0)),
    }


def _measure(masks: np.ndarray, sizes: np.ndarray, num_nodes: int, seconds: float) -> float:
    """Nanoseconds for one call."""
    num_steps, num_jobs = masks.shape
    work = (
        np.ones(num_nodes), np.empty(num_jobs, np.int32), np.empty(num_nodes),
        np.empty(scratch_length(num_jobs, num_nodes), np.int64),
    )  # fmt: skip
    _all_steps(dispatch.dispatcher, masks, sizes, *work)
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while not spent or time.perf_counter() < end:
        begin = time.perf_counter()
        _all_steps(dispatch.dispatcher, masks, sizes, *work)
        spent.append(time.perf_counter() - begin)
    return median(spent) / num_steps * 1e9


_i64 = numba.int64[::1]


@numba.njit(
    numba.int64(
        numba.types.FunctionType(SIGNATURE), numba.int64[:, ::1], _i64, numba.float64[::1], numba.int32[::1],
        numba.float64[::1], _i64,
    )
)  # fmt: skip
def _all_steps(choose, masks, sizes, slowness, tier_of, loads, scratch):
    answers = 0
    for step in range(len(masks)):
        answers += choose(masks[step], sizes, slowness, tier_of, loads, scratch)
    return answers
