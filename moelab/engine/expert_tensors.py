"""Routed experts on disk -> blocks in the kernels' arenas, each weight read once and kept once.

Three forms: per expert (`experts.N.gate_proj.weight`), fused (`experts.gate_up_proj` [E, 2I, H], gate
rows first, `experts.down_proj` [E, H, I]), and packed int4 (`weight_packed`, `weight_scale`,
`weight_shape`: compressed-tensors pack-quantized, symmetric, groups of 32, int32 or uint8 words).
What is asked for decides the format in memory: the stored one, or float32 (exact) for activation
mode f32. Nothing is ever rounded here: a scale that bf16 cannot hold is refused.
It does not know arenas' addresses, kernels or threads. Floor 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from moelab.engine.checkpoint import Checkpoint, CheckpointError
from moelab.engine.mapped_file import SMALL_STREAM
from moelab.kernels.job import GROUP, TILE_ROWS, WeightFormat
from moelab.kernels.layout import ExpertLayout, pack

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
FORMAT_OF_DTYPE: dict[str, WeightFormat] = {"BF16": "bf16", "F32": "float32", "F16": "float32"}
DiskForm = Literal["per_expert", "fused", "packed"]
Parts = list[tuple[str, torch.Tensor]]
"""The rows of a strip in each of its tensors, the weights first: names, and views of the files."""


@dataclass(frozen=True)
class Strip:
    """Rows [first, stop) of a projection (0 gate, 1 up, 2 down) of an expert: `num_bytes` at `place` of the files."""

    place: tuple[str, int]
    num_bytes: int
    expert: int
    projection: int
    first: int
    stop: int


@dataclass(frozen=True)
class ExpertTensors:
    """The experts of one layer in a checkpoint; `prefix` is `...mlp.experts.` as the file spells it."""

    checkpoint: Checkpoint
    prefix: str
    num_experts: int
    hidden_size: int
    intermediate_size: int
    form: DiskForm

    @classmethod
    def find(
        cls, checkpoint: Checkpoint, prefix: str, num_experts: int, hidden_size: int, intermediate_size: int
    ) -> ExpertTensors:
        """Recognise the form by its first tensor. An absent layer is `per_expert`, which `shapes` then misses."""
        form: DiskForm = "per_expert"
        if f"{prefix}gate_up_proj" in checkpoint:
            form = "fused"
        elif f"{prefix}0.gate_proj.weight_packed" in checkpoint:
            form = "packed"
        return cls(checkpoint, prefix, num_experts, hidden_size, intermediate_size, form)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that must be there, with its shape."""
        hidden, inter = self.hidden_size, self.intermediate_size
        if self.form == "fused":
            return {
                f"{self.prefix}gate_up_proj": (self.num_experts, 2 * inter, hidden),
                f"{self.prefix}down_proj": (self.num_experts, hidden, inter),
            }
        expected: dict[str, tuple[int, ...]] = {}
        for expert in range(self.num_experts):
            for projection in PROJECTIONS:
                rows, columns = (hidden, inter) if projection == "down_proj" else (inter, hidden)
                name = f"{self.prefix}{expert}.{projection}.weight"
                if self.form == "per_expert":
                    expected[name] = (rows, columns)
                    continue
                packed = self.checkpoint.entries.get(f"{name}_packed")
                as_bytes = packed is not None and packed.dtype == "U8"
                expected[f"{name}_packed"] = (rows, -(-columns // 2) if as_bytes else -(-columns // 8))
                expected[f"{name}_scale"] = (rows, -(-columns // GROUP))
                expected[f"{name}_shape"] = (2,)
        return expected

    def stored_format(self) -> WeightFormat:
        """The kernel format that holds these weights exactly. CheckpointError for any other type."""
        if self.form == "packed":
            return "int4_g32"
        first = f"{self.prefix}gate_up_proj" if self.form == "fused" else f"{self.prefix}0.gate_proj.weight"
        entry = self.checkpoint.entries[first]
        if entry.dtype not in FORMAT_OF_DTYPE:
            raise CheckpointError(
                entry.file,
                f"{first} as BF16, F32, F16 or packed int4",
                entry.dtype,
                "convert the experts to one of them",
            )
        return FORMAT_OF_DTYPE[entry.dtype]

    def strips(self, strip_bytes: int) -> list[Strip]:
        """Everything to pack, in strips of about `strip_bytes` of the source."""
        found = []
        for expert in range(self.num_experts):
            for projection in range(len(PROJECTIONS)):
                name, of_tensor = self._tensors(expert, projection)[0]
                entry, rows = self.checkpoint.entries[name], self._shape(projection)[0]
                row_bytes = entry.num_bytes // math.prod(entry.shape[:-1])
                skipped = (of_tensor.start or 0) + (expert * entry.shape[1] if self.form == "fused" else 0)
                height = max(strip_bytes // (row_bytes * TILE_ROWS), 1) * TILE_ROWS
                for first in range(0, rows, height):
                    place = (entry.file.name, entry.offset + (skipped + first) * row_bytes)
                    stop = min(first + height, rows)
                    found.append(Strip(place, (stop - first) * row_bytes, expert, projection, first, stop))
        return found

    def pack(self, strip: Strip, block: np.ndarray, layout: ExpertLayout) -> None:
        """Write a strip into `block` (uint8 [expert_bytes]) of its expert as `layout` says."""
        self.pack_tiles(strip, self.parts(strip), block[self.place_of(strip, layout)], layout)

    def place_of(self, strip: Strip, layout: ExpertLayout) -> slice:
        """The bytes of a strip in the block of its expert."""
        columns = self._shape(strip.projection)[1]
        start = layout.offsets[strip.projection] + layout.projection_bytes(strip.first, columns)
        return slice(start, start + layout.projection_bytes(strip.stop - strip.first, columns))

    def pack_tiles(self, strip: Strip, parts: Parts, tiles: np.ndarray, layout: ExpertLayout) -> None:
        """Write a strip into `tiles`, uint8 as long as its place."""
        rows, columns = self._shape(strip.projection)
        read = [(name, self.checkpoint.fetch(view, stream)) for stream, (name, view) in enumerate(parts)]
        if self.form == "packed":
            source = self._packed(strip, read, rows, columns, layout.weight_format)
        else:
            source = _plain(read[0][1], layout.weight_format)
        pack(tiles, source, strip.stop - strip.first, columns, layout.weight_format)

    def _shape(self, projection: int) -> tuple[int, int]:
        """[R, C] of a projection."""
        hidden, inter = self.hidden_size, self.intermediate_size
        return (hidden, inter) if PROJECTIONS[projection] == "down_proj" else (inter, hidden)

    def _tensors(self, expert: int, projection: int) -> list[tuple[str, slice]]:
        """Names of the tensors of a projection, the weights first, and which rows of them (by expert where fused)."""
        if self.form == "fused":
            rows = self._shape(projection)[0]
            if PROJECTIONS[projection] == "down_proj":
                return [(f"{self.prefix}down_proj", slice(0, rows))]
            return [(f"{self.prefix}gate_up_proj", slice(projection * rows, (projection + 1) * rows))]
        name, whole = f"{self.prefix}{expert}.{PROJECTIONS[projection]}.weight", slice(None)
        if self.form == "per_expert":
            return [(name, whole)]
        return [(f"{name}_packed", whole), (f"{name}_scale", whole)]

    def parts(self, strip: Strip) -> Parts:
        """Where a strip lies."""
        found = []
        for name, rows in self._tensors(strip.expert, strip.projection):
            tensor = self.checkpoint.read(name)
            matrix = tensor[strip.expert] if self.form == "fused" else tensor
            whole = rows == slice(None) and strip.first == 0 and strip.stop >= len(matrix)
            found.append((name, matrix if whole else matrix[rows][strip.first : strip.stop]))
        return found

    def ahead(self, parts: Parts) -> None:
        """The same thread packs this strip soon."""
        for stream, (_, view) in enumerate(parts):
            self.checkpoint.ahead(view, stream)

    def _read_small(self, name: str) -> torch.Tensor:
        """A whole tensor, on a stream of its own so that nothing else that was fetched is lost."""
        return self.checkpoint.fetch(self.checkpoint.read(name), SMALL_STREAM)

    def _packed(self, strip: Strip, parts: Parts, rows: int, columns: int, weight_format: WeightFormat) -> Any:
        (name, packed), (scale_name, scale) = parts
        file = self.checkpoint.entries[name].file
        shape_name = name.removesuffix("_packed") + "_shape"
        if strip.first == 0 and (stated := self._read_small(shape_name).tolist()) != [rows, columns]:
            raise CheckpointError(
                file, f"{shape_name} {[rows, columns]}", stated, "load the config.json that belongs to this checkpoint"
            )
        words = as_words(packed, columns)
        if weight_format == "float32":
            return dequantise(words, scale.float().numpy(), columns)
        bits = scale.to(torch.bfloat16)
        if scale.dtype != torch.bfloat16 and not torch.equal(bits.float(), scale.float()):
            raise CheckpointError(
                file,
                f"{scale_name} that bf16 holds exactly",
                f"{scale.dtype} values between bf16 numbers",
                "load with activation='f32'",
            )
        return words, bits.contiguous().view(torch.int16).numpy().view(np.uint16)


def _plain(matrix: torch.Tensor, weight_format: WeightFormat) -> np.ndarray:
    if weight_format == "bf16":
        return matrix.contiguous().view(torch.int16).numpy().view(np.uint16)
    return matrix.float().contiguous().numpy()


def as_words(packed: torch.Tensor, columns: int) -> np.ndarray:
    """`weight_packed` as int32 [R, ceil(C / 8)]; uint8 words are the same bytes, padded with q = 0."""
    array = packed.contiguous().numpy()
    if array.dtype == np.uint8:
        spare = -array.shape[1] % 4
        array = np.pad(array, ((0, 0), (0, spare)), constant_values=0x88).view("<i4")
    if array.dtype != np.int32 or array.shape[1] != -(-columns // 8):
        raise ValueError(
            f"weight_packed: expected int32 [R, {-(-columns // 8)}] or uint8 [R, {-(-columns // 2)}], "
            f"got {array.dtype} {list(array.shape)}; repack the experts"
        )
    return array


def dequantise(words: np.ndarray, scale: np.ndarray, columns: int) -> np.ndarray:
    """int32 words [R, ceil(C / 8)] and scale float32 [R, ceil(C / 32)] -> float32 [R, C]: q * scale, exact products."""
    shifts = 4 * np.arange(8, dtype=np.uint32)
    nibbles = (words.view(np.uint32)[:, :, None] >> shifts) & np.uint32(15)
    q = nibbles.reshape(len(words), -1)[:, :columns].astype(np.float32) - 8
    return q * np.repeat(scale, GROUP, axis=1)[:, :columns]
