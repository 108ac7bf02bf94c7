"""Matrices of one size in slots: memory on a torch device, taken once, and the product with what lies in a slot.

What arrives are tiles of the kernels' layout (`kernels.layout`), the bytes that cross the link; they are turned into
torch's order on the device, one class for each format. Rows are padded to 16, columns to 64, as in the tiles, so that
capacity and link bytes are those of the layout. Products are in `dtype`, the type of the activations: bf16 where the
device multiplies it, float32 elsewhere. It does not know experts, threads or policies. Floor 2.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from moelab.kernels.job import GROUP, TILE_COLUMNS, TILE_ROWS, WeightFormat
from moelab.kernels.layout import TILE_BYTES


class Matrices(Protocol):
    """`num_slots` matrices of R padded rows and C padded columns."""

    def write(self, slot: int, tiles: torch.Tensor) -> None:
        """tiles uint8 (flat, on the device) -> the slot."""

    def product(self, slot: int, x: torch.Tensor) -> torch.Tensor:
        """x [T, C] of `dtype` -> [T, R] of `dtype`: x times the matrix transposed."""

    @property
    def num_bytes(self) -> int:
        """Of device memory."""


STORED = {"bf16": torch.bfloat16, "float32": torch.float32}


class PlainMatrices:
    """bf16 or float32 weights [R, C], row by row."""

    def __init__(
        self, num_slots: int, rows: int, columns: int, weight_format: WeightFormat, device: torch.device,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.dtype = dtype
        self.weights = torch.zeros((num_slots, rows, columns), dtype=STORED[weight_format], device=device)

    def write(self, slot: int, tiles: torch.Tensor) -> None:
        weights = self.weights[slot]
        per_line = 4 // weights.element_size()  # columns of a line of 64 B: it holds 16 rows
        down, across = weights.shape[0] // TILE_ROWS, weights.shape[1] // TILE_COLUMNS
        lines = tiles.view(weights.dtype).view(down, across, TILE_COLUMNS // per_line, TILE_ROWS, per_line)
        weights.view(down, TILE_ROWS, across, TILE_COLUMNS // per_line, per_line).copy_(lines.permute(0, 3, 1, 2, 4))

    def product(self, slot: int, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[slot].to(self.dtype))

    @property
    def num_bytes(self) -> int:
        return self.weights.nbytes


class Int4Matrices:
    """int4 in groups of 32 columns, as torch's int4 product takes them: `_weight_int4pack_mm`, on a CPU its twin.

    A weight is (q - 8) * scale + 0; the zero points that torch wants stand beside the scales. The product on cuda
    takes bf16 only, and has never been run (no GPU where moelab is built).
    """

    def __init__(
        self, num_slots: int, rows: int, columns: int, weight_format: WeightFormat, device: torch.device,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.dtype, self.on_cpu = dtype, device.type == "cpu"
        self.rows, self.columns = rows, columns
        self.inner_tiles = 8 if columns % 128 == 0 else 4  # of 16 columns, must divide them
        nothing = torch.zeros((rows, columns), dtype=torch.uint8, device=device)
        sample = self._packed(nothing)
        self.weights = torch.zeros((num_slots, *sample.shape), dtype=sample.dtype, device=device)
        self.scales_and_zeros = torch.zeros((num_slots, columns // GROUP, rows, 2), dtype=dtype, device=device)

    def _packed(self, nibbles: torch.Tensor) -> torch.Tensor:
        """uint8 [R, C] of q + 8 -> torch's own order."""
        if self.on_cpu:
            return torch._convert_weight_to_int4pack_for_cpu(nibbles.int(), 2)
        pairs = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
        return torch._convert_weight_to_int4pack(pairs.contiguous(), self.inner_tiles)

    def write(self, slot: int, tiles: torch.Tensor) -> None:
        down, across = self.rows // TILE_ROWS, self.columns // TILE_COLUMNS
        blocks = tiles.view(down, across, TILE_BYTES["int4_g32"])
        numbers, scales = blocks[:, :, :512], blocks[:, :, 512:].contiguous().view(torch.bfloat16)
        lines = numbers.reshape(down, across, 8, TILE_ROWS, 4)
        nibbles = torch.stack((lines & 15, lines >> 4), dim=4)  # down, across, line, row, half, column
        self.weights[slot].copy_(self._packed(nibbles.permute(0, 3, 1, 2, 4, 5).reshape(self.rows, self.columns)))
        by_group = scales.view(down, across, 2, TILE_ROWS).permute(1, 2, 0, 3).reshape(-1, self.rows)
        self.scales_and_zeros[slot, :, :, 0].copy_(by_group)

    def product(self, slot: int, x: torch.Tensor) -> torch.Tensor:
        function = torch._weight_int4pack_mm_for_cpu if self.on_cpu else torch._weight_int4pack_mm
        return function(x, self.weights[slot], GROUP, self.scales_and_zeros[slot])

    @property
    def num_bytes(self) -> int:
        return self.weights.nbytes + self.scales_and_zeros.nbytes


MATRICES: dict[str, type[PlainMatrices] | type[Int4Matrices]] = {
    "int4_g32": Int4Matrices, "bf16": PlainMatrices, "float32": PlainMatrices,
}  # fmt: skip
"""Formats that a slot may have."""
