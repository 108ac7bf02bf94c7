"""Memory-bound cells on two virtual nodes of one memory: plans, a fast tier that holds the hottest, batches.  Floor 6.

What the fast tier holds is not read at home (static: nothing is copied). Each run of a cell stands between two reads of
both nodes' own bytes: their rate replaces the calibrated one, because the speed of a shared memory changes in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from moelab.bench.placement.cells import Cell
from moelab.bench.placement.core_bound import NUM_NODES, Planned
from moelab.bench.placement.lockstep import ids_of_steps, lockstep
from moelab.bench.placement.placed import Entries, PlacedLayers, counted_bytes
from moelab.calibration.rounds import in_rounds
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.trace import NO_EXPERT
from moelab.kernels import RoutedExperts, read_nodes

CAPACITIES = (0.0, 0.125, 0.25)
BATCHES = (1, 8)
NUM_STEPS = 6
_READ_EXPERTS = 4  # of each node, beside each run


def two_node_cells(
    planned: Planned, placed: PlacedLayers, times: ExpertTimes, loads: np.ndarray, *, loop: int, seconds: float,
    seed: int = 0, tell: Callable[[str], None] = lambda text: None,
) -> tuple[list[Cell], np.ndarray]:  # fmt: skip
    """(cells, GB/s of both nodes together beside each run). ``loads`` [L, E] say what is hottest.

    Predictions are fixed by the entries before anything runs; only the read rate of the round enters afterwards.
    """
    rng = np.random.default_rng(seed)
    keys = [(key, capacity, batch) for key, capacity, batch in product(planned.plans, CAPACITIES, BATCHES)]
    layers = {key: placed.of(plan) for key, plan in planned.plans.items()}
    plain = {batch: ids_of_steps(lockstep(planned.held_out, batch, NUM_STEPS, seed=seed + batch), placed.num_layers)
             for batch in BATCHES}  # fmt: skip
    steps = {(capacity, batch): [missed(ids, loads, capacity) for ids in plain[batch]]
             for capacity, batch in product(CAPACITIES, BATCHES)}  # fmt: skip
    entries: dict[tuple, Entries] = {
        (key, capacity, batch): placed.entries(layers[key], steps[capacity, batch]) for key, capacity, batch in keys
    }
    tell(f"{len(keys)} cells on {NUM_NODES} nodes predicted")
    addresses = [shelf_addresses(layers, node) for node in range(NUM_NODES)]
    expert_bytes = placed.layout.expert_bytes
    rates: dict[tuple, list[float]] = {cell: [] for cell in keys}

    def read() -> float:
        """GB/s of each node while both read."""
        chosen = np.concatenate([rng.permutation(addresses[node])[:_READ_EXPERTS] for node in range(NUM_NODES)])
        node = np.repeat(np.arange(NUM_NODES), _READ_EXPERTS)
        return _READ_EXPERTS * expert_bytes / read_nodes(chosen, node, expert_bytes, loop, placed.pool).max() / 1e9

    def run(cell: tuple) -> float:
        key, capacity, batch = cell
        before = read()
        spent = placed.run(layers[key], steps[capacity, batch])
        rates[cell].append((before + read()) / 2)
        return spent

    start = {key: counted_bytes(of_plan) for key, of_plan in layers.items()}
    cases: dict[str, Callable[[], float]] = {str(cell): partial(run, cell) for cell in keys}
    values = in_rounds(cases, seconds=seconds, seed=seed)
    for key, of_plan in layers.items():
        expected = sum(len(rates[cell]) * entries[cell].bytes_of_node for cell in keys if cell[0] == key)
        if not np.array_equal(counted_bytes(of_plan) - start[key], expected):
            raise RuntimeError(
                f"kernels read other bytes under {key} than predicted: a bug of moelab, please report it"
            )
    cells = []
    for cell in keys:
        key, capacity, batch = cell
        of_round = np.array(rates[cell][1:])  # the first round warms up
        total = float(entries[cell].num_bytes.sum())
        cells.append(
            Cell(
                plan=f"{key[0]} {key[1]:.0%}", policy="static" if capacity else "none", capacity=capacity, batch=batch,
                num_steps=NUM_STEPS, measured_s=values[str(cell)],
                predicted_s=np.array([entries[cell].seconds(times, {NUM_NODES: rate}) for rate in of_round]),
                naive_s=total / (NUM_NODES * of_round * 1e9),
            )
        )  # fmt: skip
    return cells, NUM_NODES * np.concatenate([each[1:] for each in rates.values()])


def missed(ids: np.ndarray, loads: np.ndarray, capacity: float) -> np.ndarray:
    """``ids`` [B, L, K] without those of the ``capacity`` hottest experts of each layer."""
    slots = round(capacity * loads.shape[1])
    out = ids.copy()
    for layer in range(ids.shape[1]):
        hottest = np.argsort(-loads[layer], kind="stable")[:slots]
        out[:, layer][np.isin(ids[:, layer], hottest)] = NO_EXPERT
    return out


def shelf_addresses(layers: dict[tuple[str, float], list[RoutedExperts]], node: int) -> np.ndarray:
    """Of whole experts that lie on a node under the first plan that has some there."""
    for of_plan in layers.values():
        arena = of_plan[0].placement
        assert arena is not None
        whole = arena.piece_bytes == arena.layout.expert_bytes
        here = arena.address_of_copy[whole, node]
        if (here > 0).sum() >= _READ_EXPERTS:
            return here[here > 0]
    raise ValueError(f"no plan has {_READ_EXPERTS} whole experts on node {node}: name one that has")
