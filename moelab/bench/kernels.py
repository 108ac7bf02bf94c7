"""``moelab bench kernels``: expert layers of Kimi K2.6 shape beside a read of as many bytes, and beside peers.

The work (W1): H 7168, I 2048, top-8, random experts per step over far more bytes than the last-level cache. Steps of
the kernel and reads of OTHER random experts by the best loop take turns in one process with the same workers; a row is
the median of the ratios of bytes/s, with its quartiles, of a step and the reads before and after it. Steps between
unequal reads are left out and counted, two states of a shared memory told apart (``memory_states``). Large batches are
bound by computing and stand beside a register-only loop of the same instruction as well. Absolute figures of a shared
machine drift, ratios of neighbours do not. Cases, gates and verdicts: ``kernel_gates``; what a row says:
``kernel_row``; peers: ``peers``. Floor 6, no torch but in peers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache

import numpy as np
from tqdm.auto import tqdm

from moelab.bench.kernel_gates import MORE, QUICK, judged
from moelab.bench.kernel_row import COLUMNS, KernelRow
from moelab.bench.memory_states import PairedSteps, beside_reads, pair_steps
from moelab.bench.read_reference import Read, ReadReference, experts_beside
from moelab.bench.result import BenchResult
from moelab.kernels import (
    Activation,
    Bandwidth,
    Counts,
    ExpertArena,
    ExpertLayout,
    NodeArenas,
    Pool,
    RoutedExperts,
    WeightFormat,
    isa_table,
    peak_gflops,
    round_robin,
)
from moelab.kernels.generated import fill_expert
from moelab.kernels.reference import reference_experts, relative_error

HIDDEN_SIZE, INTERMEDIATE_SIZE, TOP_K = 7168, 2048, 8
FLOPS_PER_PAIR = 6 * HIDDEN_SIZE * INTERMEDIATE_SIZE
# Experts of one format: 1.2 to 2.8 GB, many times any last-level cache.
NUM_EXPERTS: dict[WeightFormat, int] = {"int4_g32": 48, "int8_g32": 32, "bf16": 24, "float32": 16}
_ERROR_SIZE = (
    256  # intermediate size of the experts whose error is taken: the float64 reference of a whole one takes seconds
)
_ERROR_EXPERTS = 3
QUICK_S = 2.5  # of steps of a case: the main cases are done in 40 s


@contextmanager
def generated_experts(
    weight_format: WeightFormat, num_experts: int | None = None, virtual_nodes: int | None = None
) -> Iterator[ExpertArena | NodeArenas]:
    """K2.6-shaped experts with generated weights; round-robin on the nodes where there are several."""
    layout = ExpertLayout(HIDDEN_SIZE, INTERMEDIATE_SIZE, weight_format)
    num_experts = num_experts or NUM_EXPERTS[weight_format]
    with Pool(virtual_nodes=virtual_nodes) as pool, ExitStack() as stack:
        arena: ExpertArena | NodeArenas = (
            stack.enter_context(ExpertArena(layout, num_experts))
            if pool.num_nodes == 1
            else stack.enter_context(
                NodeArenas(layout, round_robin(1, num_experts, pool.num_nodes)[0], pool.memory_node_of_node)
            )
        )

        def fill(worker: int, num_workers: int) -> None:
            for expert in range(worker, len(arena), num_workers):
                fill_expert(arena[expert], layout, seed=expert)

        pool.run(fill)
        yield arena


def random_step(
    rng: np.random.Generator, batch: int, num_experts: int, top_k: int = TOP_K
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [B, H], expert ids [B, K] (distinct within a token), gate weights [B, K]."""
    x = rng.standard_normal((batch, HIDDEN_SIZE)).astype(np.float32)
    ids = np.stack([rng.permutation(num_experts)[:top_k] for _ in range(batch)]).astype(np.int32)
    return x, ids, np.full(ids.shape, 1 / top_k, np.float32)


def bench_case(
    arena: ExpertArena | NodeArenas, pool: Pool, isa: str, activation: Activation, batch: int, seconds: float,
    seed: int = 0,
) -> KernelRow:  # fmt: skip
    """``seconds`` of steps, each paired with a read of other experts, by node where the pool has several."""
    layout, rng = arena.layout, np.random.default_rng(seed)
    placed = isinstance(arena, NodeArenas) and pool.num_nodes > 1 and isa != "numba"
    node_of_expert = arena.node_of_expert if isinstance(arena, NodeArenas) and placed else None
    layer = RoutedExperts(layout, arena.addresses, isa, activation, pool, owner=arena, node_of_expert=node_of_expert)
    nodes = np.zeros(len(arena), np.int32) if node_of_expert is None else node_of_expert
    out = np.empty((batch, HIDDEN_SIZE), np.float32)
    x, ids, gates = random_step(rng, batch, len(arena))
    layer.forward(x, ids, gates, out)  # compile before the clock starts
    reference = ReadReference(arena.addresses, layout.expert_bytes, nodes, pool, placed=placed)
    reference.choose(np.sort(rng.permutation(len(arena))[: 2 * TOP_K]))  # the first ones lie on the largest pages
    step = random_step(rng, batch, len(arena))
    reads = [reference.read(experts_beside(rng, len(arena), ids, step[1], TOP_K))]
    forward_s: list[float] = []
    step_bytes: list[int] = []
    peaks: list[float] = []
    started, before = time.perf_counter(), layer.seconds
    counts_before = Counts.of([layer])
    while _goes_on(time.perf_counter() - started, seconds, reads):
        x, ids, gates = step
        bytes_before = layer.bytes_read
        start = time.perf_counter()
        layer.forward(x, ids, gates, out)
        forward_s.append(time.perf_counter() - start)
        step_bytes.append(layer.bytes_read - bytes_before)
        step = random_step(rng, batch, len(arena))
        reads.append(reference.read(experts_beside(rng, len(arena), ids, step[1], TOP_K)))
        if batch > 16:
            peaks.append(peak_gflops(isa, activation, pool) or np.nan)
    steps = _paired(reads)
    rates = np.array(step_bytes) / np.array(forward_s) / 1e9
    flops = batch * TOP_K * FLOPS_PER_PAIR
    median = float(np.median(forward_s))
    of_peak = np.median(flops / np.array(forward_s) / 1e9 / np.array(peaks)) if peaks else np.nan
    counts, calls = Counts.of([layer]) - counts_before, len(forward_s)
    tail_s = None if np.isnan(counts.tail_s[0]) else float(counts.tail_s[0])
    read_loop = reference.most_used(reads)
    limits = np.nanmedian(np.array([read.gb_per_s_of_node for read in reads]), axis=0)
    of_node = Bandwidth.of(
        "", counts, tuple(limits.tolist()), read_loop=read_loop, virtual_nodes=pool.virtual
    ).totals  # fmt: skip
    return KernelRow(
        kind="case", isa=isa, weights=layout.weight_format, activation=activation, carried=layer.carried, batch=batch,
        threads=pool.num_workers, virtual_nodes=pool.virtual,
        ms_median=1e3 * median, ms_min=1e3 * min(forward_s), ms_max=1e3 * max(forward_s),
        gb_per_s=float(np.median(rates)), read_loop=read_loop,
        gflops=flops / median / 1e9, percent_of_peak=None if np.isnan(of_peak) else float(100 * of_peak),
        tail_percent=None if tail_s is None else 100 * tail_s / (layer.seconds - before),
        tail_us=None if tail_s is None else 1e6 * tail_s / calls,
        gb_per_s_per_node=tuple(node.gb_per_s for node in of_node),
        percent_of_read_limit_per_node=tuple(node.percent_of_read_limit or 0.0 for node in of_node),
        relative_error=error_of(layout.weight_format, isa, activation), num_steps=len(forward_s),
        **beside_reads(steps, rates),
    )  # fmt: skip


def _paired(reads: list[Read]) -> PairedSteps:
    return pair_steps(np.array([read.gb_per_s for read in reads]), np.array([read.choice for read in reads]))


def _goes_on(elapsed_s: float, seconds: float, reads: list[Read]) -> bool:
    """At least four steps, and four that can be compared unless they do not come in twice the time and a second."""
    if elapsed_s < seconds or len(reads) < 5:
        return True
    return elapsed_s < 2 * seconds + 1 and int(_paired(reads).kept.sum()) < 4


def error_of(weight_format: WeightFormat, isa: str, activation: Activation) -> float:
    """||y - y64|| / ||y64|| of 24 tokens through each of three experts of W1's hidden size.

    Of so narrow an expert and few tokens it would vary with the seed: 1.11 to 1.22% of four tokens in int8 mode.
    """
    return _error_of(ExpertLayout(HIDDEN_SIZE, _ERROR_SIZE, weight_format), isa, activation)


@cache
def _error_of(layout: ExpertLayout, isa: str, activation: Activation) -> float:
    with ExpertArena(layout, _ERROR_EXPERTS) as arena:
        *step, truth = _accuracy_step(arena)
        y = RoutedExperts(layout, arena.addresses, isa, activation, owner=arena).forward(*step)
        return relative_error(y, truth)


_truth_of_layout: dict[ExpertLayout, np.ndarray] = {}


def _accuracy_step(arena: ExpertArena) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fills the arena; x, expert_ids, gate_weights and y in float64, which takes a second and is the same each time."""
    for expert in range(len(arena)):
        fill_expert(arena[expert], arena.layout, seed=expert)
    x = np.random.default_rng(1).standard_normal((24 * len(arena), arena.layout.hidden_size)).astype(np.float32)
    ids = np.repeat(np.arange(len(arena)), 24)[:, None]
    gates = np.ones(ids.shape, np.float32)
    if arena.layout not in _truth_of_layout:
        _truth_of_layout[arena.layout] = reference_experts(x, ids, gates, arena, arena.layout)
    return x, ids, gates, _truth_of_layout[arena.layout]


def bench_kernels(seconds: float, quick: bool = False) -> list[KernelRow]:
    """All cases, ``seconds`` of steps each; an ISA that cannot run here has one row that says why.

    Needs up to 3 GB of memory.
    """
    missing = {row.isa: row.why for row in isa_table() if not row.supported}
    every = QUICK if quick else QUICK + MORE
    cases = [case for case in every if case[0] not in missing]
    absent = [isa for isa in dict.fromkeys(case[0] for case in every) if isa in missing]
    rows = [KernelRow("absent", isa=isa, reason=missing[isa]) for isa in absent]
    with tqdm(total=len(cases), desc="kernels", unit="case") as bar:
        for weight_format in dict.fromkeys(case[1] for case in cases):
            with generated_experts(weight_format) as arena:
                for isa, _, activation, batch, threads in [case for case in cases if case[1] == weight_format]:
                    with Pool(None if threads == "all" else 1) as pool:
                        rows.append(bench_case(arena, pool, isa, activation, batch, seconds))
                    bar.update()
    return rows


def run(seconds: float = 10.0, quick: bool = False) -> BenchResult:
    """``moelab bench kernels``: ``seconds`` of steps a case, and peers; ``quick``: main cases, under 40 s."""
    from moelab.bench.layer_call import rows_of_layer_calls

    seconds = min(seconds, QUICK_S) if quick else seconds
    rows = bench_kernels(seconds, quick)
    rows += rows_of_layer_calls(0.3)
    if "amx" in {row.isa for row in isa_table() if row.supported}:
        from moelab.bench.amx_crossover import rows_of_crossover

        rows += rows_of_crossover(seconds)
    if not quick:
        from moelab.bench.beside_peers import rows_beside_peers

        rows += rows_beside_peers(seconds)
    title = f"expert layers of {HIDDEN_SIZE} x {INTERMEDIATE_SIZE}, top-{TOP_K}, beside a read of as many bytes"
    return BenchResult(title, [asdict(row) for row in judged(rows)], columns=COLUMNS)
