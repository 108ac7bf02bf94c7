"""Memory-bound cells on two virtual nodes of one memory: plans, a fast tier that holds the hottest, batches.  Floor 6.

What the fast tier holds is not read at home (static: nothing is copied). Each run of a cell stands between two
``Moment``s: their reads and kernels replace the calibrated ones (``WAYS`` says in which predictions).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from moelab.bench.placement.cells import Cell
from moelab.bench.placement.core_bound import NUM_NODES, Planned
from moelab.bench.placement.lockstep import ids_of_steps, lockstep
from moelab.bench.placement.moment import Moment, NodeCalls, now_of
from moelab.bench.placement.placed import Entries, PlacedLayers, counted_bytes
from moelab.calibration.rounds import in_rounds
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.trace import NO_EXPERT
from moelab.domain.units import GB

CAPACITIES = (0.0, 0.125, 0.25)
STEPS_OF_BATCH = {1: 24, 8: 6}  # so that a stall of some milliseconds is as small a part of either


def two_node_cells(
    planned: Planned, placed: PlacedLayers, times: ExpertTimes, loads: np.ndarray, *, loop: int, seconds: float,
    seed: int = 0, tell: Callable[[str], None] = lambda text: None,
) -> tuple[list[Cell], np.ndarray]:  # fmt: skip
    """(cells, GB/s of both nodes together beside each run). ``loads`` [L, E] say what is hottest.

    Entries and the prediction ``beforehand`` are made before anything runs; into the others enters the moment.
    """
    keys = [(key, capacity, batch) for key, capacity, batch in product(planned.plans, CAPACITIES, STEPS_OF_BATCH)]
    layers = {key: placed.of(plan) for key, plan in planned.plans.items()}
    plain = {
        batch: ids_of_steps(lockstep(planned.held_out, batch, num_steps, seed=seed + batch), placed.num_layers)
        for batch, num_steps in STEPS_OF_BATCH.items()
    }
    steps = {(capacity, batch): [missed(ids, loads, capacity) for ids in plain[batch]]
             for capacity, batch in product(CAPACITIES, STEPS_OF_BATCH)}  # fmt: skip
    entries: dict[tuple, Entries] = {
        (key, capacity, batch): placed.entries(layers[key], steps[capacity, batch]) for key, capacity, batch in keys
    }
    before = {cell: each.seconds(times) for cell, each in entries.items()}
    tell(f"{len(keys)} cells on {NUM_NODES} nodes predicted")
    calls = NodeCalls(placed, loop=loop, seed=seed)
    moments: dict[tuple, list[tuple[Moment, Moment]]] = {cell: [] for cell in keys}

    def run(cell: tuple) -> float:
        key, capacity, batch = cell
        first = calls.make()
        spent = placed.run(layers[key], steps[capacity, batch])
        moments[cell].append((first, calls.make()))
        return spent

    start = {key: counted_bytes(of_plan) for key, of_plan in layers.items()}
    cases: dict[str, Callable[[], float]] = {str(cell): partial(run, cell) for cell in keys}
    values = in_rounds(cases, seconds=seconds, seed=seed)
    for key, of_plan in layers.items():
        expected = sum(len(moments[cell]) * entries[cell].bytes_of_node for cell in keys if cell[0] == key)
        if not np.array_equal(counted_bytes(of_plan) - start[key], expected):
            raise RuntimeError(
                f"kernels read other bytes under {key} than predicted: a bug of moelab, please report it"
            )
    cells, rates = [], []
    for cell in keys:
        key, capacity, batch = cell
        work, num_bytes = entries[cell], float(entries[cell].num_bytes.sum())
        now = [now_of(times, pair, NUM_NODES) for pair in moments[cell][1:]]  # the first round warms up
        limit = NUM_NODES * np.array([each.slowest_gb_per_s for each in now])
        rates.append(limit)
        cells.append(
            Cell(
                plan=f"{key[0]} {key[1]:.0%}", policy="static" if capacity else "none", capacity=capacity, batch=batch,
                num_steps=STEPS_OF_BATCH[batch], measured_s=values[str(cell)],
                predicted={
                    "model": np.array([work.seconds(each.times) for each in now]),
                    "reads": np.array([work.seconds(times, {NUM_NODES: each.mean_gb_per_s}) for each in now]),
                    "beforehand": np.full(len(now), before[cell]),
                    "bytes": num_bytes / (limit * GB),
                    "kernel_bytes": num_bytes / (np.array([each.kernels_gb_per_s for each in now]) * GB),
                },
                read_gb_per_s=limit,
                kernel_share=np.array([each.times.busy[NUM_NODES].kernel_share for each in now]),
            )
        )  # fmt: skip
    return cells, np.concatenate(rates)


def missed(ids: np.ndarray, loads: np.ndarray, capacity: float) -> np.ndarray:
    """``ids`` [B, L, K] without those of the ``capacity`` hottest experts of each layer."""
    slots = round(capacity * loads.shape[1])
    out = ids.copy()
    for layer in range(ids.shape[1]):
        hottest = np.argsort(-loads[layer], kind="stable")[:slots]
        out[:, layer][np.isin(ids[:, layer], hottest)] = NO_EXPERT
    return out
