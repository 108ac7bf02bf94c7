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

from moelab.kernels.job import WeightFormat
from moelab.kernels.linear import PackedLinear
from moelab.kernels.pool import Pool

# What `dense_weights` may ask for, and the format of the kernels that it means.
PACKED_FORMATS: dict[str, WeightFormat] = {"bf16": "bf16", "int8": "int8_g32", "int4": "int4_g32"}

Linear = Callable[[torch.Tensor], torch.Tensor]


class Linears(Protocol):
    """Makes the linear layers of a model."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """weight [R, C], bias [R]: x [..., C] -> [..., R]."""

    def heads(self, weight: torch.Tensor) -> Linear:
        """weight [heads, R, C]: x [heads, T, C] -> [heads, T, R]."""


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

    def heads(self, weight: torch.Tensor) -> Linear:
        by_column = weight.transpose(1, 2).contiguous()
        return lambda x: torch.bmm(x, by_column)


class KernelLinears:
    """Linear layers from packed weights by the kernels; `made` has them in the order of making."""

    def __init__(self, weight_format: WeightFormat, isa: str | None, pool: Pool) -> None:
        self.weight_format, self.isa, self.pool = weight_format, isa, pool
        self.made: list[KernelLinear] = []

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        self.made.append(KernelLinear(weight, bias, self.weight_format, self.isa, self.pool))
        return self.made[-1]

    def heads(self, weight: torch.Tensor) -> Linear:
        return self.linear(weight)


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


@dataclass(frozen=True)
class GatedMLP:
    """down_proj(silu(gate_proj(x)) * up_proj(x)); gate and up rows lie in one matrix [2I, H]."""

    gate_up_proj: Linear
    down_proj: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)
