"""Routed experts on disk -> blocks in the kernels' arenas, each weight read once and kept once.

Three forms: per expert (`experts.N.gate_proj.weight`), fused (`experts.gate_up_proj` [E, 2I, H], gate
rows first, `experts.down_proj` [E, H, I]), and packed int4 (`weight_packed`, `weight_scale`,
`weight_shape`: compressed-tensors pack-quantized, symmetric, groups of 32, int32 or uint8 words).
What is asked for decides the format in memory: the stored one, or float32 (exact) for activation
mode f32. Nothing is ever rounded here: a scale that bf16 cannot hold is refused.
It does not know arenas' addresses, kernels or threads. Floor 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from moelab.engine.checkpoint import Checkpoint, CheckpointError
from moelab.kernels.job import GROUP, WeightFormat
from moelab.kernels.layout import ExpertLayout

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
FORMAT_OF_DTYPE: dict[str, WeightFormat] = {"BF16": "bf16", "F32": "float32", "F16": "float32"}
DiskForm = Literal["per_expert", "fused", "packed"]


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

    def pack(self, expert: int, block: np.ndarray, layout: ExpertLayout) -> None:
        """Write one expert into `block` (uint8 [expert_bytes]) in the format of `layout`."""
        if self.form == "packed":
            sources = [self._packed(expert, p, layout.weight_format) for p in PROJECTIONS]
        else:
            sources = [_plain(matrix, layout.weight_format) for matrix in self._matrices(expert)]
        layout.pack_expert(block, *sources)

    def _matrices(self, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.form == "fused":
            gate_up = self.checkpoint.read(f"{self.prefix}gate_up_proj")[expert]
            gate, up = gate_up.chunk(2, dim=0)
            return gate, up, self.checkpoint.read(f"{self.prefix}down_proj")[expert]
        gate, up, down = (self.checkpoint.read(f"{self.prefix}{expert}.{p}.weight") for p in PROJECTIONS)
        return gate, up, down

    def _packed(self, expert: int, projection: str, weight_format: WeightFormat) -> Any:
        name = f"{self.prefix}{expert}.{projection}.weight"
        hidden, inter = self.hidden_size, self.intermediate_size
        rows, columns = (hidden, inter) if projection == "down_proj" else (inter, hidden)
        file = self.checkpoint.entries[f"{name}_packed"].file
        stated = self.checkpoint.read(f"{name}_shape").tolist()
        if stated != [rows, columns]:
            raise CheckpointError(
                file, f"{name}_shape {[rows, columns]}", stated, "load the config.json that belongs to this checkpoint"
            )
        words = as_words(self.checkpoint.read(f"{name}_packed"), columns)
        scale = self.checkpoint.read(f"{name}_scale")
        if weight_format == "float32":
            return dequantise(words, scale.float().numpy(), columns)
        bits = scale.to(torch.bfloat16)
        if not torch.equal(bits.float(), scale.float()):
            raise CheckpointError(
                file,
                f"{name}_scale that bf16 holds exactly",
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
