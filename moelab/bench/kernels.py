"""``moelab bench kernels``: batch-1 expert layers of Kimi K2.6 shape beside a read of as many bytes.

The work: H 7168, I 2048, top-8, int4 group 32, random experts per step over far more bytes
than the last-level cache. Every step runs each ISA and then the best read loop on OTHER random experts, in one
process with the same workers; a row is the median and the quartiles of the paired ratios of bytes/s. Absolute
GB/s of a shared machine drift, ratios of neighbours do not. Floor 6, no torch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from moelab.bench.result import BenchResult
from moelab.kernels import ExpertArena, ExpertLayout, Pool, RoutedExperts, isa_table, read_limit, read_once
from moelab.kernels.generated import fill_expert
from moelab.kernels.job import Activation

HIDDEN_SIZE, INTERMEDIATE_SIZE, TOP_K = 7168, 2048, 8
NUM_EXPERTS = 48


@dataclass(frozen=True)
class KernelRow:
    """One ISA and mode: medians over ``num_steps`` paired steps; percent of the read limit with quartiles."""

    isa: str
    activation: str
    num_threads: int
    num_tokens: int
    forward_ms: float
    gb_per_s: float
    read_gb_per_s: float
    read_loop: str
    percent_of_read_limit: float
    percent_first_quartile: float
    percent_third_quartile: float
    num_steps: int


def bench_kernels(
    seconds: float = 4.0,
    threads: Sequence[int] | None = None,
    activations: Sequence[Activation] = ("int8", "bf16"),
    isas: Sequence[str] | None = None,
    seed: int = 0,
) -> list[KernelRow]:
    """Rows for every thread count (default: 1 and all) x mode x ISA; ``seconds`` of stepping per row.

    Needs about 1.2 GB of memory. Raises ``MemoryError`` where the arena is refused.
    """
    layout = ExpertLayout(HIDDEN_SIZE, INTERMEDIATE_SIZE, "int4_g32")
    isas = isas or [row.isa for row in isa_table() if row.supported]
    rng = np.random.default_rng(seed)
    rows: list[KernelRow] = []
    with ExpertArena(layout, NUM_EXPERTS) as arena:
        for expert in range(NUM_EXPERTS):
            fill_expert(arena[expert], layout, seed=expert)
        counts = threads
        if counts is None:
            with Pool() as widest:
                counts = sorted({1, widest.num_workers})
        for num_threads in counts:
            with Pool(num_threads) as pool:
                for activation in activations:
                    rows += _paired(arena, pool, activation, isas, seconds, rng)
    return rows


def _paired(
    arena: ExpertArena,
    pool: Pool,
    activation: Activation,
    isas: Sequence[str],
    seconds: float,
    rng: np.random.Generator,
) -> list[KernelRow]:
    layout = arena.layout
    step_bytes = TOP_K * layout.expert_bytes
    x = rng.standard_normal((1, layout.hidden_size)).astype(np.float32)
    gates = np.full((1, TOP_K), 1 / TOP_K, np.float32)
    out = np.empty_like(x)
    layers = {isa: RoutedExperts(layout, arena.addresses, isa, activation, pool, owner=arena) for isa in isas}
    for layer in layers.values():
        layer.forward(x, np.arange(TOP_K)[None], gates, out)  # compile before the clock starts
    best = read_limit(arena.addresses[: 2 * TOP_K], layout.expert_bytes, pool, rounds=5)
    forward_s: dict[str, list[float]] = {isa: [] for isa in isas}
    read_s: dict[str, list[float]] = {isa: [] for isa in isas}
    deadline = time.perf_counter() + seconds * len(layers)
    while time.perf_counter() < deadline:
        for isa, layer in layers.items():
            order = rng.permutation(NUM_EXPERTS)
            ids = order[None, :TOP_K]
            started = time.perf_counter()
            layer.forward(x, ids, gates, out)
            forward_s[isa].append(time.perf_counter() - started)
            others = arena.addresses[order[TOP_K : 2 * TOP_K]]
            read_s[isa].append(read_once(others, layout.expert_bytes, best.loop, pool))
    rows = []
    for isa in isas:
        quartiles = np.percentile(100 * np.array(read_s[isa]) / np.array(forward_s[isa]), [25, 50, 75])
        forward = float(np.median(forward_s[isa]))
        rows.append(
            KernelRow(
                isa=isa,
                activation=activation,
                num_threads=pool.num_workers,
                num_tokens=1,
                forward_ms=1e3 * forward,
                gb_per_s=step_bytes / forward / 1e9,
                read_gb_per_s=step_bytes / float(np.median(read_s[isa])) / 1e9,
                read_loop=best.loop_name,
                percent_of_read_limit=float(quartiles[1]),
                percent_first_quartile=float(quartiles[0]),
                percent_third_quartile=float(quartiles[2]),
                num_steps=len(forward_s[isa]),
            )
        )
    return rows


def run(seconds: float = 4.0) -> BenchResult:
    """``moelab bench kernels``: ``seconds`` of stepping for each thread count and mode."""
    rows = bench_kernels(seconds)
    shape = f"{HIDDEN_SIZE} x {INTERMEDIATE_SIZE}, top-{TOP_K}, int4, batch 1"
    title = f"expert layers of {shape}, beside a read of as many bytes"
    return BenchResult(title, [asdict(row) for row in rows])
