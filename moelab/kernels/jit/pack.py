"""Packing into tiles where there is no native library: the bytes of kernels/pack.h, in scalar loops.

Does not check shapes (see ``layout``). Floor 1: NumPy and Numba.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit

from moelab.kernels.job import WeightFormat
from moelab.source_stamp import stamped


def pack_by_numba(
    tiles: np.ndarray, numbers: np.ndarray, scale: np.ndarray | None, columns: int, weight_format: WeightFormat
) -> None:
    """``tiles`` uint8 (flat), ``numbers`` [R, ..] and ``scale`` as ``layout.pack`` takes them."""
    if weight_format == "int4_g32":
        _pack_int4(tiles.view(np.uint32), numbers.view(np.uint32), columns)
        _pack_scales(tiles.view(np.uint16), scale, columns, 288)
    elif weight_format == "int8_g32":
        _pack_lines(tiles, numbers.view(np.uint8) ^ np.uint8(128), 4, 1088, np.uint8(128))
        _pack_scales(tiles.view(np.uint16), scale, columns, 544)
    elif weight_format == "bf16":
        _pack_lines(tiles.view(np.uint16), numbers, 2, 1024, np.uint16(0))
    else:
        _pack_lines(tiles.view(np.float32), numbers, 1, 1024, np.float32(0))


@njit(nogil=True, cache=True)
@stamped
def _spread(nibbles):
    """Four nibbles of the low 16 bits -> the low nibbles of four bytes."""
    x = nibbles & np.uint32(0xFFFF)
    x = (x | (x << np.uint32(8))) & np.uint32(0x00FF00FF)
    return (x | (x << np.uint32(4))) & np.uint32(0x0F0F0F0F)


@njit(nogil=True, cache=True)
@stamped
def _pack_int4(words, packed, num_columns):
    num_rows, num_words = packed.shape
    tail = num_columns % 8
    keep = np.uint32((1 << (4 * tail)) - 1) if tail else np.uint32(0xFFFFFFFF)
    zeros = np.uint32(0x88888888)
    for n in range((num_rows + 15) // 16):
        for k in range((num_columns + 63) // 64):
            tile = n * ((num_columns + 63) // 64) + k
            for r in range(16):
                row = n * 16 + r
                for j in range(8):
                    word = zeros
                    w = k * 8 + j
                    if row < num_rows and w < num_words:
                        word = packed[row, w]
                        if w == num_words - 1:
                            word = (word & keep) | (zeros & ~keep)
                    words[tile * 144 + j * 16 + r] = _spread(word) | (_spread(word >> np.uint32(16)) << np.uint32(4))


@njit(nogil=True, cache=True)
@stamped
def _pack_scales(halves, scale, num_columns, tile_halves):
    """The last 32 halves of each tile: [2 groups][16 rows]; 0 where there is no row or group."""
    num_rows, num_groups = scale.shape
    num_tiles = (num_columns + 63) // 64
    for n in range((num_rows + 15) // 16):
        for k in range(num_tiles):
            base = (n * num_tiles + k + 1) * tile_halves - 32
            for g in range(2):
                for r in range(16):
                    row, group = n * 16 + r, k * 2 + g
                    inside = row < num_rows and group < num_groups
                    halves[base + g * 16 + r] = scale[row, group] if inside else np.uint16(0)


@njit(nogil=True, cache=True)
@stamped
def _pack_lines(out, weights, columns_per_line, tile_numbers, zero):
    """int8 (four columns per line), bf16 (two), float32 (one): ``out`` is the tiles as elements, ``zero`` pads."""
    num_rows, num_columns = weights.shape
    num_tiles = (num_columns + 63) // 64
    for n in range((num_rows + 15) // 16):
        for k in range(num_tiles):
            base = (n * num_tiles + k) * tile_numbers
            for r in range(16):
                row = n * 16 + r
                for c in range(64):
                    column = k * 64 + c
                    inside = row < num_rows and column < num_columns
                    at = (c // columns_per_line * 16 + r) * columns_per_line + c % columns_per_line
                    out[base + at] = weights[row, column] if inside else zero
