"""Generated weights: every expert its own physical pages and its own bytes, written at memory speed.

Knows the int4_g32 tile (512 B of nibbles, 64 B of bf16 scales) well enough to fill it with random
weights of variance about 1 / columns, so that outputs stay near unit size. Floor 1.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from moelab.kernels.layout import ExpertLayout
from moelab.source_stamp import stamped

_TILE_BYTES = 576
_NIBBLE_BYTES = 512
_INT4_STANDARD_DEVIATION = 4.61  # of integers uniform in -8..7


@njit(nogil=True, cache=True)
@stamped
def _mix(state):
    """splitmix64 (Steele, Lea, Flood 2014): one 64-bit draw from a counter."""
    z = state + uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return z ^ (z >> uint64(31))


@njit(nogil=True, cache=True)
@stamped
def _fill_int4(words, scales, scale_bits, seed):
    """Fill tiles seen as uint64 [tiles, 72] and as uint16 [tiles, 288]; scales vary by up to a factor 2."""
    counter = uint64(seed) * uint64(0xD1342543DE82EF95)
    for tile in range(words.shape[0]):
        for word in range(_NIBBLE_BYTES // 8):
            counter += uint64(1)
            words[tile, word] = _mix(counter)
        for at in range(_NIBBLE_BYTES // 2, _TILE_BYTES // 2):
            counter += uint64(1)
            scales[tile, at] = scale_bits + np.uint16(_mix(counter) & uint64(0x7F))


def bf16_bits(value: float) -> int:
    """Bit pattern of ``value`` rounded towards zero to bf16 with a zero mantissa (a power of two)."""
    return int(np.float32(value).view(np.uint32) >> 16) & 0xFF80


def fill_expert(block: np.ndarray, layout: ExpertLayout, seed: int) -> None:
    """Random weights into ``block`` (uint8 [expert_bytes]); the same seed gives the same bytes."""
    if layout.weight_format != "int4_g32":
        raise ValueError(f"generated weights are int4_g32, got {layout.weight_format}: choose that format")
    hidden, intermediate = layout.hidden_size, layout.intermediate_size
    bounds = (*layout.offsets, layout.expert_bytes)
    for projection, columns in enumerate((hidden, hidden, intermediate)):
        part = block[bounds[projection] : bounds[projection + 1]]
        scale = 1.0 / (_INT4_STANDARD_DEVIATION * np.sqrt(columns))
        _fill_int4(
            part.view(np.uint64).reshape(-1, _TILE_BYTES // 8), part.view(np.uint16).reshape(-1, _TILE_BYTES // 2),
            np.uint16(bf16_bits(scale)), 3 * seed + projection,
        )  # fmt: skip
