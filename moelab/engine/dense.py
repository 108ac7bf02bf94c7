"""The dense pieces that every layer uses: RMSNorm, linear, gated MLP.  Inference only.

A linear layer is torch's, or packed weights on the kernels of the routed experts (`PACKED_FORMATS`), for machines
without a GPU. It does not know names or files. Floor 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from moelab.engine.strips import Fetch
from moelab.kernels.job import WeightFormat
from moelab.kernels.linear import PackedLinear, Tiles
from moelab.kernels.pool import Pool

# What `dense_weights` may ask for, and the format of the kernels that it means.
PACKED_FORMATS: dict[str, WeightFormat] = {"bf16": "bf16", "int8": "int8_g32", "int4": "int4_g32"}

Linear = Callable[[torch.Tensor], torch.Tensor]


class Linears(Protocol):
    """Makes the linear layers of a model, each with a name of its own; weights may be views of a file, of any float."""

    def linear(self, name: str, *weights: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """weights [R, C], joined along the rows, bias [R]: x [..., C] -> [..., R]."""

    def heads(self, name: str, weight: torch.Tensor) -> Linear:
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
    """Linear layers by torch, of what `join` makes of their weights: one tensor in the dense type on the device."""

    def __init__(self, join: Callable[[Sequence[torch.Tensor]], torch.Tensor]) -> None:
        self.join = join
        self.num_bytes = 0

    def linear(self, name: str, *weights: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        joined = self.join(weights)
        self.num_bytes += joined.nbytes
        return TorchLinear(joined, bias)

    def heads(self, name: str, weight: torch.Tensor) -> Linear:
        by_column = self.join([weight.transpose(1, 2)])
        self.num_bytes += by_column.nbytes
        return lambda x: torch.bmm(x, by_column)


class KernelLinears:
    """Linear layers from packed weights by the kernels; `made` has them in the order of making.

    `fetch` reads what a view of a file covers (`strips`). `saved` gives the tiles of a layer by its name where they
    were packed before; None packs the weights.
    """

    def __init__(
        self,
        weight_format: WeightFormat,
        isa: str | None,
        pool: Pool,
        fetch: Fetch = lambda view: view,
        saved: Callable[[str], Tiles] | None = None,
    ) -> None:
        self.weight_format, self.isa, self.pool, self.fetch, self.saved = weight_format, isa, pool, fetch, saved
        self.made: list[KernelLinear] = []

    @property
    def num_bytes(self) -> int:
        return sum(linear.num_bytes for linear in self.made)

    def linear(self, name: str, *weights: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        rows = Rows(weights, self.fetch)
        source: Rows | Tiles = rows
        if self.saved is not None:
            source = self.saved(name)
            if tuple(source.shape) != rows.shape:
                raise ValueError(
                    f"{name}: expected saved tiles of {list(rows.shape)}, got {list(source.shape)}; pack again"
                )
        self.made.append(KernelLinear(source, bias, self.weight_format, self.isa, self.pool, name))
        return self.made[-1]

    def heads(self, name: str, weight: torch.Tensor) -> Linear:
        return self.linear(name, weight)


class Rows:
    """Rows of tensors of any float type, one below the other, as the packer takes them, a strip at a time."""

    def __init__(self, weights: Sequence[torch.Tensor], fetch: Fetch = lambda view: view) -> None:
        self.weights, self.fetch = weights, fetch
        self.shape = (sum(len(weight) for weight in weights), *weights[0].shape[1:])

    def __getitem__(self, rows: Any) -> Any:
        """A matrix of several, or a strip of rows: bf16 bits (uint16) or float32."""
        if isinstance(rows, int):
            return Rows([self.weights[0][rows]], self.fetch)
        strips, first = [], 0
        for weight in self.weights:
            strip = weight[max(rows.start - first, 0) : max(rows.stop - first, 0)]
            first += len(weight)
            if len(strip) == rows.stop - rows.start:
                return _numbers(self.fetch(strip))
            if len(strip):
                strips.append(_numbers(strip))  # parts of two tensors: a buffer would not hold both
        return np.concatenate(strips)


def _numbers(strip: torch.Tensor) -> np.ndarray:
    bits = strip.dtype == torch.bfloat16
    array: np.ndarray = strip.contiguous().view(torch.int16).numpy() if bits else strip.float().numpy()
    return array.view(np.uint16) if bits else array


class KernelLinear:
    """The same from packed weights by the kernels; x of any float type on the CPU, the result in x's type.

    weight [M, R, C] is M matrices with inputs of their own, x [M, T, C].
    """

    def __init__(
        self,
        weight: Rows | Tiles,
        bias: torch.Tensor | None,
        weight_format: WeightFormat,
        isa: str | None,
        pool: Pool,
        name: str = "",
    ) -> None:
        self.name = name
        self.packed = PackedLinear(weight, weight_format, isa, pool=pool)
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
