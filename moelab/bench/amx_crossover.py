"""From how many tokens of an expert on is AMX faster than AVX-512: both by turns in one process, where there is AMX.

Every step sends the same number of tokens through each of 8 random experts of K2.6's shape. The answer is
``MOELAB_AMX_MIN_TOKENS`` of kernels/moelab_kernels.h, which was chosen without it: nobody ran this on AMX yet. Floor 6.
"""

from __future__ import annotations

import time

import numpy as np

from moelab.bench import kernels
from moelab.bench.kernel_row import KernelRow
from moelab.bench.kernels import generated_experts
from moelab.kernels import ExpertArena, NodeArenas, Pool, RoutedExperts

TOKENS_OF_EXPERT = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)
NUM_EXPERTS = 24  # 0.6 GB of int4


def rows_of_crossover(seconds: float, few: str = "avx512") -> list[KernelRow]:
    """One row for each number of tokens; ``few`` is the ISA beside AMX."""
    with generated_experts("int4_g32", NUM_EXPERTS) as arena, Pool() as pool:
        return [_row(arena, pool, few, tokens, seconds / len(TOKENS_OF_EXPERT)) for tokens in TOKENS_OF_EXPERT]


def _row(arena: ExpertArena | NodeArenas, pool: Pool, few: str, tokens: int, seconds: float) -> KernelRow:
    layers = [RoutedExperts(arena.layout, arena.addresses, isa, "int8", pool, owner=arena) for isa in (few, "amx")]
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, arena.layout.hidden_size)).astype(np.float32)
    gates = np.full((tokens, kernels.TOP_K), 1 / kernels.TOP_K, np.float32)
    times: list[tuple[float, float]] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 4:
        pair = []
        for layer in layers:
            # Experts of its own for each: the other's would be in the cache.
            ids = np.tile(rng.permutation(len(arena))[: kernels.TOP_K], (tokens, 1)).astype(np.int32)
            start = time.perf_counter()
            layer.forward(x, ids, gates)
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]))
    ratios = np.array([first / second for first, second in times[1:]])  # the first pair fills buffers
    return KernelRow(
        kind="crossover", isa="amx", name=f"beside {few}", weights="int4_g32", activation="int8", batch=tokens,
        threads=pool.num_workers, ms_median=1e3 * float(np.median([second for _, second in times[1:]])),
        num_steps=len(ratios), times_ours=float(np.median(ratios)),
        times_ours_quartiles=(float(np.percentile(ratios, 25)), float(np.percentile(ratios, 75))),
    )  # fmt: skip
