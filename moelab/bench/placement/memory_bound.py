"""Judgement (b), memory-bound: cells that calibration has not seen, beside the contention model.  Floor 6."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moelab.bench.placement.cells import MemoryBound
from moelab.bench.placement.core_bound import NUM_NODES, Planned, fitting_layers
from moelab.bench.placement.placed import PlacedLayers
from moelab.bench.placement.two_nodes import two_node_cells
from moelab.bench.placement.with_uploads import upload_cells
from moelab.domain.expert_times import ExpertTimes
from moelab.kernels import ExpertLayout, Pool, read_limit

PLANS = (
    ("round_robin", 0.0),
    ("eplb", 0.1),
    ("anneal", 0.0),
    ("anneal", 0.25),
    ("split_some", 0.0),
    ("row_split", 0.0),
)


def memory_bound(
    name: str, planned: Planned, times: ExpertTimes, loads: np.ndarray, *, seconds: float = 40.0, seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> MemoryBound:  # fmt: skip
    """Cells on two nodes, then cells with uploads, half of the time each. ``loads`` [L, E] of the planning half."""
    isa, weight_format, activation = times.kernel.split("/")
    layout = ExpertLayout(times.hidden_size, times.intermediate_size, weight_format)  # type: ignore[arg-type]
    num_experts = planned.held_out.header.num_experts
    num_layers = fitting_layers(layout, num_experts, 2)
    with Pool(NUM_NODES, virtual_nodes=NUM_NODES) as pool:
        placed = PlacedLayers(layout, num_layers, num_experts, pool, isa=isa, activation=activation)  # type: ignore[arg-type]
        first = placed.of(next(iter(planned.plans.values())))[0].placement
        assert first is not None
        loop = read_limit(
            first.addresses[:8], layout.expert_bytes, pool, rounds=3, node_of_address=np.arange(8) % NUM_NODES
        ).loop
        cells, rates = two_node_cells(
            planned, placed, times, loads, loop=loop, seconds=seconds / 2, seed=seed, tell=tell
        )
        del placed, first
    cells += upload_cells(planned, times, num_layers=num_layers, loop=loop, seconds=seconds / 2, seed=seed, tell=tell)
    low, middle, high = np.percentile(rates, (0, 50, 100))
    return MemoryBound(
        trace=name, kernel=times.name, num_layers=num_layers, num_rounds=min(len(cell.measured_s) for cell in cells),
        cells=cells, read_gb_per_s=(float(low), float(middle), float(high)),
    )  # fmt: skip
