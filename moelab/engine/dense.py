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

from moelab.engine.strips import Memory, Source
from moelab.kernels.isa import choose_isa
from moelab.kernels.job import ACTIVATIONS_OF_FORMAT, WeightFormat
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.linear import PackedLinear, Tiles, pack_matrices
from moelab.kernels.native import Counters as NativeCounters
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts
from moelab.kernels.shared_rows import map_expert, nodes_of_shared
from moelab.kernels.tasks import Tasks

# What `dense_weights` may ask for, and the format of the kernels that it means.
PACKED_FORMATS: dict[str, WeightFormat] = {
    "float32": "float32", "bf16": "bf16", "int8": "int8_g32", "int4": "int4_g32",
}  # fmt: skip

MEMORY = Memory()
Linear = Callable[[torch.Tensor], torch.Tensor]
Section = tuple[str, tuple[int, ...], np.ndarray]  # packed weights by name: shape of the matrix, tiles (uint8)


class Linears(Protocol):
    """Makes the linear layers of a model, each with a name of its own; weights may be views of a file, of any float."""

    def linear(self, name: str, *weights: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """weights [R, C], joined along the rows, bias [R]: x [..., C] -> [..., R]."""

    def exact(self, name: str, weight: torch.Tensor) -> Linear:
        """weight [R, C], never rounded: x [..., C] -> float32 [..., R]."""

    def heads(self, name: str, weight: torch.Tensor) -> Linear:
        """weight [heads, R, C]: x [heads, T, C] -> [heads, T, R]."""

    def mlp(self, name: str, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> Linear:
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
    """Linear layers by torch, `join` makes one tensor of their weights: on the device, in the dense type or another."""

    def __init__(self, join: Callable[[Sequence[torch.Tensor], torch.dtype | None], torch.Tensor]) -> None:
        self.join = join
        self.num_bytes = 0

    def linear(self, name: str, *weights: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        return TorchLinear(self._kept(weights), bias)

    def exact(self, name: str, weight: torch.Tensor) -> Linear:
        kept = self._kept([weight], torch.float32)
        return lambda x: F.linear(x.float(), kept)

    def mlp(self, name: str, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> Linear:
        return GatedMLP(TorchLinear(self._kept([gate, up])), TorchLinear(self._kept([down])))

    def _kept(self, weights: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> torch.Tensor:
        joined = self.join(weights, dtype)
        self.num_bytes += joined.nbytes
        return joined

    def heads(self, name: str, weight: torch.Tensor) -> Linear:
        by_column = self._kept([weight.transpose(1, 2)])
        return lambda x: torch.bmm(x, by_column)


class KernelLinears:
    """Linear layers from packed weights by the kernels; `made` has them in the order of making.

    `source` is where the weights come from (`strips`). `saved` gives the tiles of a layer by its name where they
    were packed before; None packs the weights. `tasks` are to be run before the layers compute; None packs at once.
    """

    def __init__(
        self,
        weight_format: WeightFormat,
        isa: str | None,
        pool: Pool,
        source: Source = MEMORY,
        saved: Callable[[str], Tiles] | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        self.weight_format, self.isa, self.pool, self.source, self.saved = weight_format, isa, pool, source, saved
        self.tasks = tasks
        self.made: list[KernelLinear | KernelMLP] = []

    @property
    def num_bytes(self) -> int:
        return sum(made.num_bytes for made in self.made)

    @property
    def arithmetic(self) -> str:
        """Activations and kernels, in words; where AMX is forced the float32 of routers and attention is AVX-512's."""
        activation = ACTIVATIONS_OF_FORMAT[self.weight_format][0]
        used = (choose_isa(self._isa_of(each)).isa for each in (self.weight_format, "float32"))
        return f"{activation} activations on {' and '.join(dict.fromkeys(used))}"

    def linear(self, name: str, *weights: torch.Tensor, bias: torch.Tensor | None = None) -> KernelLinear:
        return self._linear(name, weights, bias, self.weight_format)

    def exact(self, name: str, weight: torch.Tensor) -> KernelLinear:
        return self._linear(name, [weight], None, "float32")

    def heads(self, name: str, weight: torch.Tensor) -> KernelLinear:
        return self.linear(name, weight)

    def mlp(self, name: str, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> KernelMLP:
        names = [f"{name}{projection}" for projection in ("gate_proj", "up_proj", "down_proj")]
        sources = [self._source(part, [weight]) for part, weight in zip(names, (gate, up, down), strict=True)]
        mlp = KernelMLP(names, sources, self.weight_format, self._isa_of(self.weight_format), self.pool, self.tasks)
        self.made.append(mlp)
        return mlp

    def _linear(
        self, name: str, weights: Sequence[torch.Tensor], bias: torch.Tensor | None, weight_format: WeightFormat
    ) -> KernelLinear:
        source = self._source(name, weights)
        linear = KernelLinear(source, bias, weight_format, self._isa_of(weight_format), self.pool, name, self.tasks)
        self.made.append(linear)
        return linear

    def _isa_of(self, weight_format: WeightFormat) -> str | None:
        """Tiles have no float32: routers keep theirs where AMX is forced."""
        return "amx+avx512" if self.isa == "amx" and weight_format == "float32" else self.isa

    def _source(self, name: str, weights: Sequence[torch.Tensor]) -> Rows | Tiles:
        rows = Rows(weights, self.source)
        if self.saved is None:
            return rows
        saved = self.saved(name)
        if tuple(saved.shape) != rows.shape:
            raise ValueError(f"{name}: expected saved tiles of {list(rows.shape)}, got {list(saved.shape)}; pack again")
        return saved


class Rows:
    """Rows of tensors of any float type, one below the other, as the packer takes them, a strip at a time."""

    def __init__(self, weights: Sequence[torch.Tensor], source: Source = MEMORY) -> None:
        self.weights, self.source = weights, source
        self.shape = (sum(len(weight) for weight in weights), *weights[0].shape[1:])

    def __getitem__(self, rows: Any) -> Any:
        """A matrix of several, or a strip of rows: bf16 bits (uint16) or float32."""
        if isinstance(rows, int):
            return Rows([self.weights[0][rows]], self.source)
        strips = self._strips(rows)
        if len(strips) == 1:
            return _numbers(self.source.fetch(strips[0]))
        return np.concatenate([_numbers(self.source.fetch(strip)).copy() for strip in strips])

    def ahead(self, rows: slice) -> None:
        """The same thread asks for this strip soon."""
        for strip in self._strips(rows):
            self.source.ahead(strip)

    def _strips(self, rows: slice) -> list[torch.Tensor]:
        """The parts of the tensors that the rows are made of."""
        strips, first = [], 0
        for weight in self.weights:
            strip = weight[max(rows.start - first, 0) : max(rows.stop - first, 0)]
            first += len(weight)
            if len(strip):
                strips.append(strip)
        return strips


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
        tasks: Tasks | None = None,
    ) -> None:
        self.name = name
        self.packed = PackedLinear(weight, weight_format, isa, pool=pool, tasks=tasks)
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
    def binding(self) -> str:
        return self.packed.binding

    @property
    def pages(self) -> str:
        return self.packed.pages

    @property
    def sections(self) -> list[Section]:
        packed = self.packed
        leading = () if packed.num_matrices is None else (packed.num_matrices,)
        return [(self.name, (*leading, packed.num_rows, packed.num_columns), packed.tiles)]

    @property
    def seconds(self) -> float:
        """Time spent in the kernels."""
        return self.packed.seconds

    @property
    def counters(self) -> NativeCounters:
        return self.packed.counters


class KernelMLP:
    """A gated MLP as one expert that every token uses: gate_proj, up_proj [I, H], down_proj [H, I], packed."""

    def __init__(
        self, names: Sequence[str], sources: Sequence[Rows | Tiles], weight_format: WeightFormat, isa: str | None,
        pool: Pool, tasks: Tasks | None = None,
    ) -> None:  # fmt: skip
        size, hidden = sources[0].shape
        layout = ExpertLayout(hidden, size, weight_format)
        self._pages = map_expert(layout, pool)
        self._sections: list[Section] = []
        for name, source, offset in zip(names, sources, layout.offsets, strict=True):
            tiles = self._pages.memory[offset : offset + layout.projection_bytes(*source.shape)]
            pack_matrices(tiles, source, weight_format, pool, tasks)
            self._sections.append((name, tuple(source.shape), tiles))
        address = np.array([self._pages.memory.ctypes.data])
        shared = nodes_of_shared(1, pool)
        self.expert = RoutedExperts(layout, address, isa, pool=pool, owner=self._pages, node_of_expert=shared)
        self.num_bytes = layout.expert_bytes

    @property
    def sections(self) -> list[Section]:
        return self._sections

    @property
    def binding(self) -> str:
        return self._pages.binding

    @property
    def pages(self) -> str:
        return self._pages.pages

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).float().numpy()
        y = self.expert.forward(rows, np.zeros((len(rows), 1), np.int32), np.ones((len(rows), 1), np.float32))
        return torch.from_numpy(y).to(x.dtype).reshape(x.shape)

    @property
    def seconds(self) -> float:
        """Time spent in the kernels."""
        return self.expert.seconds

    @property
    def counters(self) -> NativeCounters:
        counters: NativeCounters = self.expert.native_struct.counters.contents
        return counters


@dataclass(frozen=True)
class GatedMLP:
    """down_proj(silu(gate_proj(x)) * up_proj(x)); gate and up rows lie in one matrix [2I, H]."""

    gate_up_proj: Linear
    down_proj: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)
