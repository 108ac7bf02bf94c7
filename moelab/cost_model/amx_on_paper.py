"""Time of a layer-step by AMX from counts of instructions, beside the time in which its bytes can be read.  Floor 1.

Calculated, never measured: no machine with AMX was there. The kernels of kernels/amx are counted as they are: a tile
operation is 16 rows of weights x 16 tokens x 32 columns, in int8 mode half of a tile's columns, because each group of
32 has its scale. Three parts of the core work at once: the tile unit, the load and store ports, the vector units;
``best`` is the slowest of the three, as if they overlapped perfectly, ``worst`` their sum. Routing is uniform, so that
the tokens of an expert are binomial.

Does not know: caches (weights are loaded again for each 32 tokens of an expert), clocks under load, NUMA, imbalance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moelab.domain.units import GB

# Cycles. A full TDP: from the published peak of 2,048 int8 or 1,024 bf16 products a cycle and core; one with half of
# the columns is not assumed to be faster. Loads and stores: Intel's optimization manual, from memory, not verified.
TDP, TILELOADD, TILESTORED = 16, 8, 16
VECTORS_PER_CYCLE = 2  # 512-bit operations; loads of 64 B two a cycle, stores one
# Vector operations of the AMX files, counted in the disassembly of -O3: to expand a group of one row of tiles, and to
# scale its sums for one token.
EXPAND = {"int8": 4 * 3, "bf16": 16 * 20}
SCALE = {"int8": 5, "bf16": 0}
LINES = {"int8": 8, "bf16": 16}  # of 64 B that expanding stores and a tile load reads
# The AVX-512 kernel for int8 activations, of a group, a row of tiles and a token: 8 dot products, then conversion, two
# products, a sum.
AVX512 = 8 + 4

Mode = Literal["int8", "bf16"]


@dataclass(frozen=True)
class LayerStep:
    """Milliseconds of one layer-step; ``best`` and ``worst`` as the module says."""

    tokens_per_expert: float
    read_ms: float
    amx_best_ms: float
    amx_worst_ms: float
    avx512_ms: float | None  # int8 mode only


def binomial(num_tokens: int, probability: float) -> np.ndarray:
    """[B + 1]: the probability of n tokens."""
    n = np.arange(num_tokens + 1)
    steps = np.log(np.maximum(num_tokens - n[:-1], 1)) - np.log(n[1:]) + np.log(probability) - np.log1p(-probability)
    logarithms = num_tokens * np.log1p(-probability) + np.concatenate([[0], np.cumsum(steps)])
    return np.exp(logarithms)


def tile_cycles(tokens: np.ndarray, mode: Mode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cycles of the tile unit, the ports and the vector units for one row of tiles, 32 columns and n tokens."""
    blocks, passes = -(-tokens // 16), -(-tokens // 32)  # of 16 tokens, and times that the weights are taken
    stored = blocks if mode == "int8" else 0 * blocks  # bf16 sums stay in their tiles
    unit = TDP * blocks
    # Activations are loaded for two rows of tiles at least; each token's 32 numbers are gathered once for four.
    ports = TILELOADD * (passes + blocks / 2) + TILESTORED * stored + LINES[mode] * passes
    vector = (EXPAND[mode] * passes + SCALE[mode] * tokens) / VECTORS_PER_CYCLE
    return unit, ports, vector


def layer_step(
    batch: int, *, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int, expert_bytes: int,
    mode: Mode, num_cores: int, clock_ghz: float, read_gb_per_s: float,
) -> LayerStep:  # fmt: skip
    """B tokens through E experts of int4 weights, K of them each, spread evenly over all cores and all memory."""
    if batch < 1 or not 0 < top_k < num_experts:
        raise ValueError(f"expected batch >= 1 and 0 < K < E; got batch {batch}, K {top_k}, E {num_experts}")
    tokens = np.arange(batch + 1)
    share = binomial(batch, top_k / num_experts) * num_experts  # experts that have n tokens
    # Rows of tiles x groups: gate and up [I, H], down [H, I].
    row_groups = 3 * -(-intermediate_size // 16) * -(-hidden_size // 32)
    to_ms = row_groups / (num_cores * clock_ghz * 1e9) * 1e3
    unit, ports, vector = (to_ms * float(share @ cycles) for cycles in tile_cycles(tokens, mode))
    active = num_experts - float(share[0])
    avx512 = to_ms * float(share @ (EXPAND["int8"] * (tokens > 0) + AVX512 * tokens)) / VECTORS_PER_CYCLE
    return LayerStep(
        tokens_per_expert=batch * top_k / active,
        read_ms=active * expert_bytes / (read_gb_per_s * GB) * 1e3,
        amx_best_ms=max(unit, ports, vector),
        amx_worst_ms=unit + ports + vector,
        avx512_ms=avx512 if mode == "int8" else None,
    )
