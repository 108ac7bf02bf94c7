"""Pieces: ranges of an expert's rows in units of 32 intermediate rows, their bytes, and cutting them out of a block.

A piece ``[start, stop)`` has those rows of gate_proj and up_proj and, of down_proj, the output rows ``[start, stop) x
H / I`` rounded to tiles of 16 (``domain.plan``): output rows are cut, never the axis that is summed, so that any
partition gives the same bits. Its block is its rows of gate_proj, of up_proj and of down_proj, one after the other.
Does not know nodes or plans. Floor 1: NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.kernels.job import GROUP, TILE_ROWS
from moelab.kernels.layout import ExpertLayout


@dataclass(frozen=True)
class Piece:
    """Groups of 32 rows of gate_proj and up_proj, tile rows of 16 of down_proj, and what they take."""

    first_group: int
    num_groups: int
    first_row: int
    num_rows: int
    num_bytes: int


def num_units(layout: ExpertLayout) -> int:
    """Units of a whole expert."""
    return -(-layout.intermediate_size // GROUP)


def piece_of(layout: ExpertLayout, start: int, stop: int) -> Piece:
    """The piece ``[start, stop)``; raises ``ValueError`` outside the expert."""
    if not 0 <= start < stop <= num_units(layout):
        raise ValueError(
            f"piece: expected 0 <= start < stop <= {num_units(layout)} units of 32 rows; got {start}, {stop}"
        )
    first_row, last_row = _down_row(layout, start), _down_row(layout, stop)
    up_rows = _up_rows(layout, start, stop)
    up_bytes, down_bytes = _row_bytes(layout)
    return Piece(
        start,
        stop - start,
        first_row,
        last_row - first_row,
        2 * up_rows * up_bytes + (last_row - first_row) * down_bytes,
    )


def cut(layout: ExpertLayout, block: np.ndarray, piece: Piece, out: np.ndarray) -> None:
    """Copy the piece of the whole expert ``block`` (uint8 [expert_bytes]) into ``out`` (uint8 [num_bytes])."""
    for whole, part in _ranges(layout, piece):
        out[part] = block[whole]


def join(layout: ExpertLayout, part: np.ndarray, piece: Piece, block: np.ndarray) -> None:
    """The inverse: the bytes of the piece into their places in ``block``."""
    for whole, own in _ranges(layout, piece):
        block[whole] = part[own]


def put(layout: ExpertLayout, part: np.ndarray, start: int, piece: Piece, out: np.ndarray) -> None:
    """Of ``part``, the bytes [start, start + len) of the whole block, those of the piece into its block ``out``."""
    for whole, own in _ranges(layout, piece):
        first, stop = max(whole.start, start), min(whole.stop, start + len(part))
        if first < stop:
            out[own.start + first - whole.start : own.start + stop - whole.start] = part[first - start : stop - start]


def _ranges(layout: ExpertLayout, piece: Piece) -> list[tuple[slice, slice]]:
    """(bytes in the whole block, bytes in the piece's) of the rows of gate_proj, up_proj and down_proj."""
    up_bytes, down_bytes = _row_bytes(layout)
    first = 2 * piece.first_group * up_bytes
    gate_size = _up_rows(layout, piece.first_group, piece.first_group + piece.num_groups) * up_bytes
    place, ranges = 0, []
    for offset, start, size in (
        (layout.offsets[0], first, gate_size),
        (layout.offsets[1], first, gate_size),
        (layout.offsets[2], piece.first_row * down_bytes, piece.num_rows * down_bytes),
    ):
        ranges.append((slice(offset + start, offset + start + size), slice(place, place + size)))
        place += size
    return ranges


def _row_bytes(layout: ExpertLayout) -> tuple[int, int]:
    """Bytes of a tile row of gate_proj or up_proj, and of down_proj."""
    return (
        layout.projection_bytes(TILE_ROWS, layout.hidden_size),
        layout.projection_bytes(TILE_ROWS, layout.intermediate_size),
    )


def _up_rows(layout: ExpertLayout, start: int, stop: int) -> int:
    """Tile rows of gate_proj: two to a unit, the last unit may have one."""
    tile_rows = -(-layout.intermediate_size // TILE_ROWS)
    return min(stop * 2, tile_rows) - start * 2


def _down_row(layout: ExpertLayout, unit: int) -> int:
    """The tile row of down_proj at which the unit begins: rises with the unit, from 0 to all of them."""
    total = -(-layout.hidden_size // TILE_ROWS)
    if unit == num_units(layout):
        return total
    numbers = unit * GROUP * layout.hidden_size
    return min(
        total, (2 * numbers + TILE_ROWS * layout.intermediate_size) // (2 * TILE_ROWS * layout.intermediate_size)
    )
