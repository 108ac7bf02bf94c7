"""Generated weights: every expert its own physical pages and its own bytes, written at memory speed.

Knows the tiles well enough to fill them with random weights of variance about 1 / columns, so that outputs stay near
unit size: integers uniform with scales that vary by up to a factor 2, or floats of one exponent, random sign and
mantissa. Floor 1.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from moelab.kernels.layout import ExpertLayout
from moelab.source_stamp import stamped

# Standard deviation of integers uniform in -8..7 and -128..127, and of a float of exponent 0: 1..2 with either sign.
_DEVIATION = {"int4_g32": 4.61, "int8_g32": 73.9, "bf16": 1.53, "float32": 1.53}


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
def _fill_words(words, keep, constant, seed):
    """Random 64-bit words, of which only the bits in ``keep`` vary and ``constant`` is set."""
    counter = uint64(seed) * uint64(0xD1342543DE82EF95)
    for word in range(words.shape[0]):
        counter += uint64(1)
        words[word] = (_mix(counter) & uint64(keep)) | uint64(constant)


@njit(nogil=True, cache=True)
@stamped
def _fill_tiles(words, num_integer_words, constant, seed):
    """Tiles of integers: uint64 [tiles, words of a tile]; the last eight words are scales with these constant bits."""
    counter = uint64(seed) * uint64(0xD1342543DE82EF95)
    for tile in range(words.shape[0]):
        for word in range(words.shape[1]):
            counter += uint64(1)
            draw = _mix(counter)
            if word >= num_integer_words:
                draw = (draw & uint64(0x007F007F007F007F)) | uint64(constant)
            words[tile, word] = draw


def bf16_bits(value: float) -> int:
    """Bit pattern of ``value`` rounded towards zero to bf16 with a zero mantissa (a power of two)."""
    return int(np.float32(value).view(np.uint32) >> 16) & 0xFF80


def fill_expert(block: np.ndarray, layout: ExpertLayout, seed: int) -> None:
    """Random weights into ``block`` (uint8 [expert_bytes]); the same seed gives the same bytes."""
    hidden, intermediate = layout.hidden_size, layout.intermediate_size
    bounds = (*layout.offsets, layout.expert_bytes)
    for projection, columns in enumerate((hidden, hidden, intermediate)):
        words = block[bounds[projection] : bounds[projection + 1]].view(np.uint64)
        exponent = bf16_bits(1.0 / (_DEVIATION[layout.weight_format] * np.sqrt(columns)))
        number = 3 * seed + projection
        if layout.weight_format == "float32":
            _fill_words(words, 0x807FFFFF807FFFFF, 0x0001000000010000 * exponent, number)
        elif layout.weight_format == "bf16":
            _fill_words(words, 0x807F807F807F807F, 0x0001000100010001 * exponent, number)
        else:
            tiles = words.reshape(-1, layout.tile_bytes // 8)
            _fill_tiles(tiles, tiles.shape[1] - 8, 0x0001000100010001 * exponent, number)
