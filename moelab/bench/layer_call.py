"""What a call of a layer costs when it has next to nothing to compute: two workers woken, three meetings, nothing read.

Gate of the project: under 15 microseconds with two workers (``kernel_gates``). In the library (as it counts its own
calls), and from Python with the copies of inputs and output. The workers are hot, as in a decode step, where they
spin between two layers. Floor 6.
"""

from __future__ import annotations

import time

import numpy as np

from moelab.bench.kernel_gates import EMPTY_CALL
from moelab.bench.kernel_row import KernelRow
from moelab.kernels import ExpertArena, ExpertLayout, Pool, RoutedExperts, isa_table
from moelab.kernels.generated import fill_expert

LAYOUT = ExpertLayout(64, 32, "int4_g32")
TOP_K = 4


class OnPool(RoutedExperts):
    """All workers take part however little there is to read."""

    def workers(self, num_pairs: int) -> Pool | None:
        return self.pool


def rows_of_layer_calls(seconds: float, num_workers: int = 2) -> list[KernelRow]:
    """Two rows for each native ISA, in the library and from Python; none where a pool has fewer workers."""
    rows = []
    with Pool(num_workers) as pool, ExpertArena(LAYOUT, TOP_K) as arena:
        if pool.num_workers < num_workers:
            return []
        for expert in range(TOP_K):
            fill_expert(arena[expert], LAYOUT, seed=expert)
        for isa in [row.isa for row in isa_table() if row.supported and row.isa != "numba"]:
            rows += _rows(arena, pool, isa, seconds)
    return rows


def _rows(arena: ExpertArena, pool: Pool, isa: str, seconds: float) -> list[KernelRow]:
    layer = OnPool(LAYOUT, arena.addresses, isa, "int8", pool, owner=arena)
    x, out = np.ones((1, LAYOUT.hidden_size), np.float32), np.empty((1, LAYOUT.hidden_size), np.float32)
    ids, gates = np.arange(TOP_K, dtype=np.int32)[None], np.full((1, TOP_K), 1 / TOP_K, np.float32)
    for _ in range(100):  # fill buffers, wake the workers
        layer.forward(x, ids, gates, out)
    inside: list[float] = []
    outside: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(inside) < 100:
        before, start = layer.seconds, time.perf_counter()
        layer.forward(x, ids, gates, out)
        outside.append(time.perf_counter() - start)
        inside.append(layer.seconds - before)
    return [_row(isa, name, pool, times) for name, times in ((EMPTY_CALL, inside), (f"{EMPTY_CALL}, Python", outside))]


def _row(isa: str, name: str, pool: Pool, times: list[float]) -> KernelRow:
    return KernelRow(
        kind="call", isa=isa, name=name, weights=LAYOUT.weight_format, activation="int8", batch=1,
        threads=pool.num_workers, ms_median=1e3 * float(np.median(times)), ms_min=1e3 * min(times),
        ms_max=1e3 * max(times), num_steps=len(times),
    )  # fmt: skip
