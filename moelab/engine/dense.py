"""The dense pieces that every layer uses: RMSNorm, linear, gated MLP.  Inference only.

A linear layer is torch's, or packed weights on the kernels of the routed experts (`PACKED_FORMATS`), for machines
without a GPU. It does not know names or files. Floor 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from moelab.kernels.arena import ExpertArena
from moelab.kernels.job import WeightFormat
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.linear import PackedLinear, pack_rows
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts

# What `dense_weights` may ask for, and the format of the kernels that it means.
PACKED_FORMATS: dict[str, WeightFormat] = {
    "float32": "float32", "bf16": "bf16", "int8": "int8_g32", "int4": "int4_g32",
}  # fmt: skip

Linear = Callable[[torch.Tensor], torch.Tensor]


class Linears(Protocol):
    """Makes the linear layers of a model."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """weight [R, C], bias [R]: x [..., C] -> [..., R]."""

    def exact(self, weight: torch.Tensor) -> Linear:
        """weight float32 [R, C], never rounded: x [..., C] -> float32 [..., R]."""

    def heads(self, weight: torch.Tensor) -> Linear:
        """weight [heads, R, C]: x [heads, T, C] -> [heads, T, R]."""

    def mlp(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> Linear:
        """gate_proj, up_proj [I, H], down_proj [H, I]: x [..., H] -> [..., H]."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) in float32, rounded to x's type, times weight. x [..., H]."""
    # One norm and one product per row: 18 us for a token, F.rms_norm (composite on the CPU) 30 us.
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return weight * (wide * torch.rsqrt(norm * norm / x.shape[-1] + eps)).to(x.dtype)


@dataclass(frozen=True)
class TorchLinear:
    """weight [R, C], bias [R] or None: x [..., C] -> [..., R] by torch."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class TorchLinears:
    """Linear layers by torch, as they were read."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        return TorchLinear(weight, bias)

    def exact(self, weight: torch.Tensor) -> Linear:
        return lambda x: F.linear(x.float(), weight)

    def mlp(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> Linear:
        return GatedMLP(TorchLinear(torch.cat((gate, up))), TorchLinear(down))

    def heads(self, weight: torch.Tensor) -> Linear:
        by_column = weight.transpose(1, 2).contiguous()
        return lambda x: torch.bmm(x, by_column)


class KernelLinears:
    """Linear layers from packed weights by the kernels; `made` has them in the order of making."""

    def __init__(self, weight_format: WeightFormat, isa: str | None, pool: Pool) -> None:
        self.weight_format, self.isa, self.pool = weight_format, isa, pool
        self.made: list[KernelLinear | KernelMLP] = []

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> KernelLinear:
        return self._keep(KernelLinear(weight, bias, self.weight_format, self.isa, self.pool))

    def exact(self, weight: torch.Tensor) -> KernelLinear:
        return self._keep(KernelLinear(weight, None, "float32", self.isa, self.pool))

    def heads(self, weight: torch.Tensor) -> KernelLinear:
        return self.linear(weight)

    def mlp(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> KernelMLP:
        mlp = KernelMLP(gate, up, down, self.weight_format, self.isa, self.pool)
        self.made.append(mlp)
        return mlp

    def _keep(self, linear: KernelLinear) -> KernelLinear:
        self.made.append(linear)
        return linear


class _Rows:
    """Rows of a tensor of any float type as float32, without a float32 copy of the whole."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.shape = tuple(weight.shape)

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        part: np.ndarray = self.weight[rows].float().numpy()
        return part


class KernelLinear:
    """The same from packed weights by the kernels; x of any float type on the CPU, the result in x's type.

    weight [M, R, C] is M matrices with inputs of their own, x [M, T, C].
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, weight_format: WeightFormat, isa: str | None, pool: Pool
    ) -> None:
        self.packed = PackedLinear(_Rows(weight), weight_format, isa, pool=pool)
        self.bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        by_matrix = x if self.packed.num_matrices is not None else x.reshape(-1, x.shape[-1])
        y = torch.from_numpy(self.packed.forward(by_matrix.float().numpy()))
        if self.bias is not None:
            y = y + self.bias
        # A copy in any case: the kernel's buffer is used again.
        return y.to(x.dtype, copy=True).reshape(*x.shape[:-1], self.packed.num_rows)

    @property
    def num_bytes(self) -> int:
        return self.packed.num_bytes

    @property
    def seconds(self) -> float:
        """Time spent in the kernels."""
        return self.packed.seconds


class KernelMLP:
    """A gated MLP as one expert that every token uses: gate_proj, up_proj [I, H], down_proj [H, I], packed."""

    def __init__(
        self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, weight_format: WeightFormat, isa: str | None,
        pool: Pool,
    ) -> None:  # fmt: skip
        size, hidden = gate.shape
        layout = ExpertLayout(hidden, size, weight_format)
        arena = ExpertArena(layout, 1)
        for weight, offset in zip((gate, up, down), layout.offsets, strict=True):
            num_bytes = layout.projection_bytes(*weight.shape)
            pack_rows(arena[0][offset : offset + num_bytes], _Rows(weight), weight_format)
        self.expert = RoutedExperts(layout, arena.addresses, isa, pool=pool, owner=arena)
        self.num_bytes = layout.expert_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).float().numpy()
        y = self.expert.forward(rows, np.zeros((len(rows), 1), np.int32), np.ones((len(rows), 1), np.float32))
        return torch.from_numpy(y).to(x.dtype).reshape(x.shape)

    @property
    def seconds(self) -> float:
        """Time spent in the kernels."""
        return self.expert.seconds


@dataclass(frozen=True)
class GatedMLP:
    """down_proj(silu(gate_proj(x)) * up_proj(x)); gate and up rows lie in one matrix [2I, H]."""

    gate_up_proj: Linear
    down_proj: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)
