"""Weights of one expert as bytes: tiles of 16 rows x 64 columns, the same for every ISA.

A projection of R output rows and C columns is cut into tiles of 16 x 64; R is padded to 16 and C to
64 with zero weights. Tiles run along the columns first: tile (n, k) is number n * ceil(C / 64) + k, so
one row of tiles is one contiguous stream. Inside a tile:

- ``int4_g32``, 576 B: 8 lines of 64 B; byte 4 * row + c of line j holds q + 8 of two columns, the low
  nibble that of column 8 * j + c, the high nibble that of column 8 * j + 4 + c. Lines 0..3 are the group
  of columns 0..31, lines 4..7 that of columns 32..63. Then 64 B of bf16 scales, [2 groups][16 rows].
  Padding is q = 0 (nibble 8) with scale 0.
- ``int8_g32``, 1088 B: 16 lines of 64 B, line j is q + 128 of [16 rows][columns 4 * j .. 4 * j + 3]; scales as above.
- ``bf16``, 2048 B: 32 lines of 64 B, line j is [16 rows][columns 2 * j, 2 * j + 1].
- ``float32``, 4096 B: 64 lines of 64 B, line j is [16 rows] of column j.

An expert is gate_proj [I, H], up_proj [I, H], down_proj [H, I], one after the other, no gap; the block
starts at a multiple of 64 B. bf16 numbers are ``uint16`` bit patterns here (NumPy has no bf16).

int4 comes as compressed-tensors ``pack-quantized``: ``weight_packed`` int32 [R, ceil(C / 8)], column
8 * w + i in bits 4 * i of word w as q + 8 (q = -8 is legal), ``weight_scale`` bf16 [R, ceil(C / 32)].
int8 is int8 [R, C] with the same scales; ``quantise`` makes both from float32.

Does not know files, tensors or memory (see ``arena``). Floor 1: NumPy, the native library, Numba where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from moelab.kernels import native
from moelab.kernels.job import FORMAT_CODE, GROUP, TILE_COLUMNS, TILE_ROWS, WEIGHT_FORMATS, WeightFormat

LAYOUT_VERSION = 1  # of the bytes below: what was packed by another version is not read
TILE_BYTES: dict[WeightFormat, int] = {"float32": 4096, "bf16": 2048, "int4_g32": 576, "int8_g32": 1088}
ALIGNMENT = 64


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)


@dataclass(frozen=True)
class ExpertLayout:
    """Where everything of one expert lies: H ``hidden_size``, I ``intermediate_size``, the format.

    Raises ``ValueError`` for sizes below 1 or an unknown format.
    """

    hidden_size: int
    intermediate_size: int
    weight_format: WeightFormat

    def __post_init__(self) -> None:
        if self.weight_format not in WEIGHT_FORMATS:
            raise ValueError(f"weight format: expected one of {', '.join(WEIGHT_FORMATS)}; got {self.weight_format!r}")
        if self.hidden_size < 1 or self.intermediate_size < 1:
            raise ValueError(
                f"expert sizes: expected positive; got hidden_size {self.hidden_size}, "
                f"intermediate_size {self.intermediate_size}"
            )

    @property
    def tile_bytes(self) -> int:
        return TILE_BYTES[self.weight_format]

    @cached_property
    def padded_hidden_size(self) -> int:
        """H as columns: a multiple of 64."""
        return _tiles(self.hidden_size, TILE_COLUMNS) * TILE_COLUMNS

    @cached_property
    def padded_intermediate_size(self) -> int:
        """I as columns: a multiple of 64."""
        return _tiles(self.intermediate_size, TILE_COLUMNS) * TILE_COLUMNS

    @cached_property
    def output_stride(self) -> int:
        """H as rows: a multiple of 16."""
        return _tiles(self.hidden_size, TILE_ROWS) * TILE_ROWS

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """[R, C] of gate_proj, up_proj, down_proj."""
        up = (self.intermediate_size, self.hidden_size)
        return up, up, (self.hidden_size, self.intermediate_size)

    def projection_bytes(self, rows: int, columns: int) -> int:
        return _tiles(rows, TILE_ROWS) * _tiles(columns, TILE_COLUMNS) * self.tile_bytes

    @cached_property
    def offsets(self) -> tuple[int, int, int]:
        """First byte of gate_proj, up_proj, down_proj in the block of the expert."""
        up = self.projection_bytes(self.intermediate_size, self.hidden_size)
        return 0, up, 2 * up

    @cached_property
    def expert_bytes(self) -> int:
        """Bytes of one expert, a multiple of 64."""
        return self.offsets[2] + self.projection_bytes(self.hidden_size, self.intermediate_size)

    @property
    def bits_per_weight(self) -> float:
        return self.expert_bytes * 8 / (3 * self.hidden_size * self.intermediate_size)

    def pack_expert(self, out: np.ndarray, gate_proj: Any, up_proj: Any, down_proj: Any) -> None:
        """Write one expert into ``out`` (uint8 [expert_bytes]).

        Each projection is float32 [R, C], bf16 bits uint16 [R, C], (weight_packed int32, scale uint16) or
        (q int8 [R, C], scale uint16), by ``weight_format``.
        """
        if out.shape != (self.expert_bytes,) or out.dtype != np.uint8:
            raise ValueError(f"expert block: expected uint8 [{self.expert_bytes}]; got {out.dtype} {list(out.shape)}")
        for (rows, columns), offset, source in zip(
            self.shapes, self.offsets, (gate_proj, up_proj, down_proj), strict=True
        ):
            tiles = out[offset : offset + self.projection_bytes(rows, columns)]
            pack(tiles, source, rows, columns, self.weight_format)

    def unpack_expert(self, block: np.ndarray) -> list[Any]:
        """Inverse of ``pack_expert``: the three projections in its input form."""
        unpack = {
            "int4_g32": unpack_int4, "int8_g32": unpack_int8, "bf16": unpack_bf16, "float32": unpack_float32,
        }[self.weight_format]  # fmt: skip
        return [
            unpack(block[offset : offset + self.projection_bytes(rows, columns)], rows, columns)
            for (rows, columns), offset in zip(self.shapes, self.offsets, strict=True)
        ]


def _check(name: str, array: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"{name}: expected {np.dtype(dtype)} {list(shape)}; got {array.dtype} {list(array.shape)}")


def _check_tiles(out: np.ndarray, shape: tuple[int, ...], weight_format: WeightFormat) -> None:
    rows, columns = shape
    expected = _tiles(rows, TILE_ROWS) * _tiles(columns, TILE_COLUMNS) * TILE_BYTES[weight_format]
    _check("tiles", out, np.uint8, (expected,))


def float32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bf16, ties to even; NaN stays NaN. float32 -> uint16, same shape."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def bf16_to_float32(bits: np.ndarray) -> np.ndarray:
    """uint16 bits -> float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# -- pack: into tiles (uint8, flat) ------------------------------------------------------------------


def pack(tiles: np.ndarray, source: Any, rows: int, columns: int, weight_format: WeightFormat) -> None:
    """One projection [R, C], or a strip of its rows, into its tiles; ``source`` as in ``ExpertLayout.pack_expert``.

    By the native library, or by Numba where there is none; the bytes are the same. Releases the GIL.
    """
    scale = None
    if weight_format == "int4_g32":
        numbers, scale = source
        _check("weight_packed", numbers, np.int32, (rows, _tiles(columns, 8)))
    elif weight_format == "int8_g32":
        numbers, scale = source
        _check("int8 weights", numbers, np.int8, (rows, columns))
    else:
        numbers = source
        _check(
            f"{weight_format} weights", numbers, np.uint16 if weight_format == "bf16" else np.float32, (rows, columns)
        )
    if scale is not None:
        _check("weight_scale (bf16 bits)", scale, np.uint16, (rows, _tiles(columns, GROUP)))
        scale = np.ascontiguousarray(scale)
    _check_tiles(tiles, (rows, columns), weight_format)
    numbers = np.ascontiguousarray(numbers)
    library = native.library()[0]
    if library is None:
        from moelab.kernels.jit.pack import (
            pack_by_numba,
        )  # Numba takes 0.2 s to import, and is needed nowhere else here

        pack_by_numba(tiles, numbers, scale, columns, weight_format)
        return
    status = library.moelab_pack(
        FORMAT_CODE[weight_format], tiles.ctypes.data, numbers.ctypes.data,
        None if scale is None else scale.ctypes.data, rows, columns,
    )  # fmt: skip
    native.check_status(status, f"pack {weight_format}")


def quantise_pack(tiles: np.ndarray, weights: np.ndarray, weight_format: WeightFormat) -> None:
    """``weights`` float32 [R, C], or bf16 bits uint16 [R, C], rounded to the format and packed, in one native pass.

    The numbers are those of ``quantise``. Releases the GIL. ``RuntimeError`` without the native library.
    """
    if weights.ndim != 2 or weights.dtype not in (np.float32, np.uint16):
        raise ValueError(f"weights: expected float32 or uint16 (bf16 bits) [R, C]; got {weights.dtype} {weights.shape}")
    rows, columns = weights.shape
    _check_tiles(tiles, (rows, columns), weight_format)
    weights = np.ascontiguousarray(weights)
    stored = FORMAT_CODE["float32" if weights.dtype == np.float32 else "bf16"]
    status = native.require_library().moelab_quantise_pack(
        FORMAT_CODE[weight_format], tiles.ctypes.data, stored, weights.ctypes.data, rows, columns
    )
    native.check_status(status, f"quantise and pack {weight_format}")


# -- unpack: the inverse, for tests and for showing weights ------------------------------------------


def unpack_int4(tiles: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles -> (weight_packed int32 [R, ceil(C / 8)], scale uint16 [R, ceil(C / 32)]); spare nibbles are 8."""
    blocks = tiles.reshape(_tiles(rows, TILE_ROWS), -1, 576)
    lines = blocks[:, :, :512].reshape(len(blocks), -1, 8, 16, 4)  # n, k, j, row, c
    nibbles = np.stack([lines & 15, lines >> 4], axis=4)  # n, k, j, row, half, c
    by_row = nibbles.transpose(0, 3, 1, 2, 4, 5).reshape(len(blocks) * 16, -1, 8).astype(np.uint32)
    words = (by_row << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
    scales = blocks[:, :, 512:].copy().view(np.uint16).reshape(len(blocks), -1, 2, 16)
    scale = scales.transpose(0, 3, 1, 2).reshape(len(blocks) * 16, -1)
    packed = np.ascontiguousarray(words[:rows, : _tiles(columns, 8)]).view(np.int32)
    return packed, np.ascontiguousarray(scale[:rows, : _tiles(columns, GROUP)])


def unpack_int8(tiles: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles -> (q int8 [R, C], scale uint16 [R, ceil(C / 32)])."""
    blocks = tiles.reshape(_tiles(rows, TILE_ROWS), -1, 1088)
    q = _unpack_lines(np.ascontiguousarray(blocks[:, :, :1024]), rows, columns, 4) ^ np.uint8(128)
    scales = blocks[:, :, 1024:].copy().view(np.uint16).reshape(len(blocks), -1, 2, 16)
    scale = scales.transpose(0, 3, 1, 2).reshape(len(blocks) * 16, -1)
    return q.view(np.int8), np.ascontiguousarray(scale[:rows, : _tiles(columns, GROUP)])


def unpack_bf16(tiles: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Tiles -> bf16 bits uint16 [R, C]."""
    return _unpack_lines(tiles.view(np.uint16), rows, columns, 2)


def unpack_float32(tiles: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Tiles -> float32 [R, C]."""
    return _unpack_lines(tiles.view(np.float32), rows, columns, 1)


def _unpack_lines(elements: np.ndarray, rows: int, columns: int, columns_per_line: int) -> np.ndarray:
    num_tile_rows = _tiles(rows, TILE_ROWS)
    lines = elements.reshape(num_tile_rows, -1, TILE_COLUMNS // columns_per_line, TILE_ROWS, columns_per_line)
    matrix = lines.transpose(0, 3, 1, 2, 4).reshape(num_tile_rows * TILE_ROWS, -1)
    return np.ascontiguousarray(matrix[:rows, :columns])
