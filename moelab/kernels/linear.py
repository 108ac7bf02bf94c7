"""Matrices on the routed experts' kernels: y = W x from packed weights, on the same pool, native ISAs only.

For projections, shared experts and the head of a machine without a GPU, where the always-active weights of a large
model are read for every token and should be as small as the experts. Knows matrices and buffers; does not know
models or torch. Floor 1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from moelab.kernels.isa import IsaChoice, choose_isa
from moelab.kernels.job import (
    ABI_VERSION,
    ACTIVATIONS_OF_FORMAT,
    FORMAT_CODE,
    GROUP,
    MOE_JOB,
    SILU,
    TILE_COLUMNS,
    TILE_ROWS,
    Activation,
    WeightFormat,
    activation_code,
)
from moelab.kernels.layout import ExpertLayout, quantise_pack
from moelab.kernels.native import Counters, Forward, check_status, kernel_table, require_library, sized
from moelab.kernels.native_phases import LARGEST_BYTES, SMALLEST_BYTES
from moelab.kernels.pool import Pool
from moelab.kernels.routed import ALONE_BYTES
from moelab.kernels.scratch import ACTIVATION_BYTES, aligned
from moelab.kernels.shared_rows import map_matrices, nodes_of_shared
from moelab.kernels.tasks import Task, Tasks

# Buffers of larger steps are given back at once: every matrix of a model has its own.
KEEP_TOKENS = 16


PARALLEL_BYTES = 500_000  # below this one worker packs a matrix before the others are awake
STRIP_NUMBERS = 1_000_000  # what a worker packs at once: 2 MB of bf16


class Rows(Protocol):
    """A matrix [R, C] or [M, R, C] whose rows come as float32 or bf16 bits (uint16): an array, a part of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class Tiles(Protocol):
    """A matrix [R, C] (or [M, R, C]) that is packed already."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read_tiles(self, memory: np.ndarray, tasks: Tasks) -> None:
        """Tasks that bring its tiles into ``memory`` (uint8, all of them)."""


class PackedLinear:
    """``weights`` [R, C], rounded to ``weight_format`` and packed (``Tiles``: as they are); float32 x [T, C] -> [T, R].

    Or M matrices of one shape, [M, R, C], each with its own inputs: x [M, T, C] -> [M, T, R].

    ``activation`` defaults to the mode of the format. ``pool`` is not owned. Raises ``ValueError`` for a format or mode
    that does not exist and ``RuntimeError`` without native kernels. The weights are packed at once, or when ``tasks``
    are run. On a pool of several nodes rows lie on the nodes whose workers read them (``shared_rows``); ``binding`` and
    ``pages`` say what the system granted. A product of few bytes is the caller's alone, whatever node they are on.
    """

    def __init__(
        self,
        weights: Rows | Tiles,
        weight_format: WeightFormat,
        isa: str | None = None,
        activation: Activation | None = None,
        pool: Pool | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        if len(weights.shape) not in (2, 3) or 0 in weights.shape:
            raise ValueError(f"weights: expected float32 [R, C] or [M, R, C]; got {list(weights.shape)}")
        modes = ACTIVATIONS_OF_FORMAT[weight_format]
        if activation is not None and activation not in modes:
            raise ValueError(f"activation for {weight_format}: expected one of {', '.join(modes)}; got {activation!r}")
        self.num_matrices = None if len(weights.shape) == 2 else weights.shape[0]
        self.num_rows, self.num_columns = weights.shape[-2:]
        self.weight_format: WeightFormat = weight_format
        self.activation: Activation = activation or modes[0]
        self.isa: IsaChoice = choose_isa(isa)
        if self.isa.isa == "numba":
            raise RuntimeError(f"packed matrices need native kernels; got isa numba ({self.isa.why}): moelab doctor")
        self.pool = pool
        layout = ExpertLayout(self.num_columns, self.num_rows, weight_format)
        count, matrix_bytes = self.num_matrices or 1, layout.projection_bytes(self.num_rows, self.num_columns)
        self.num_bytes = count * matrix_bytes
        self._pages = map_matrices(
            count, -(-self.num_rows // TILE_ROWS), layout.projection_bytes(TILE_ROWS, self.num_columns), pool
        )
        self.num_nodes = 1 if pool is None else pool.num_nodes
        self._node_of_matrix = nodes_of_shared(count, pool)
        pack_matrices(self.tiles, weights, weight_format, pool, tasks)
        self._layout = layout
        self._address_of_matrix = self._pages.memory.ctypes.data + matrix_bytes * np.arange(count, dtype=np.int64)
        self._count = np.zeros(count + 1, np.int64)
        self._table = kernel_table(self.isa.isa, weight_format, self.activation)
        self._function = require_library().moelab_linear_forward
        self.counters = sized(Counters)
        self._struct: Forward | None = None
        self._tokens_each = -1

    def forward_struct(
        self, job: np.ndarray, buffers: dict[str, np.ndarray], x_address: int, x_stride: int, num_rows: int
    ) -> Forward:
        """``moelab_forward`` of this matrix over ``num_rows`` rows at ``x_address``; the rest as ``linear_job``."""
        several = self.num_matrices is not None
        row_bytes = self._layout.projection_bytes(TILE_ROWS, self.num_columns)
        return sized(
            Forward,
            job=job.ctypes.data,
            table=ctypes.pointer(self._table),
            x=x_address,
            x_stride=x_stride,
            num_tokens=num_rows,
            top_k=1,
            expert_ids=buffers["ids"].ctypes.data if several else None,
            pair_of_slot=buffers["pair_of_slot"].ctypes.data if several else None,
            num_experts=len(self._address_of_matrix),
            count_of_expert=self._count.ctypes.data,
            address_of_expert=self._address_of_matrix.ctypes.data,
            node_of_expert=None if self._node_of_matrix is None else self._node_of_matrix.ctypes.data,
            smallest_up=max(1, SMALLEST_BYTES // row_bytes),
            largest_up=max(1, LARGEST_BYTES // row_bytes),
            counters=ctypes.pointer(self.counters),
        )

    @property
    def binding(self) -> str:
        return self._pages.binding

    @property
    def pages(self) -> str:
        return self._pages.pages

    @property
    def tiles(self) -> np.ndarray:
        """The packed matrices, uint8 [num_bytes], one after the other."""
        return self._pages.memory

    def _reshape(self, tokens_each: int) -> None:
        count = self.num_matrices or 1
        rows = tokens_each * count
        self._job, buffers, output = linear_job(self, tokens_each, lambda _, size: aligned(size))
        x = aligned(4 * rows * self.num_columns)
        self._struct = self.forward_struct(self._job, buffers, x.ctypes.data, self.num_columns, rows)
        self._reference = ctypes.addressof(self._struct)
        self._buffers = buffers
        self._x: np.ndarray = x.view(np.float32).reshape(rows, self.num_columns)
        self._y: np.ndarray = output[:, : self.num_rows]
        if self.num_matrices is not None:
            self._x = self._x.reshape(count, tokens_each, self.num_columns)
            self._y = output.reshape(count, tokens_each, output.shape[1])[..., : self.num_rows]
        self._tokens_each = tokens_each

    def forward(self, x: np.ndarray) -> np.ndarray:
        """x [T, C] or [M, T, C] -> float32 [.., R], valid until the next call. ``ValueError`` for another shape."""
        leading = () if self.num_matrices is None else (self.num_matrices,)
        if x.ndim != 2 + len(leading) or x.shape[:-2] != leading or x.shape[-1] != self.num_columns:
            expected = ", ".join([*map(str, leading), "T", str(self.num_columns)])
            raise ValueError(f"forward: expected x [{expected}]; got {list(x.shape)}")
        tokens_each = x.shape[-2]
        if tokens_each != self._tokens_each:
            self._reshape(tokens_each)
        if tokens_each == 0:
            return self._y
        self._x[...] = x
        pool = self.pool
        if pool is None or pool.num_workers == 1 or self.num_bytes * tokens_each < ALONE_BYTES["native"]:
            status = self._function(None, self._reference)
        else:
            status = pool.call(self._function, self._reference)
        if status != 0:
            check_status(status, "linear")
        y = self._y
        if tokens_each > KEEP_TOKENS:
            self._tokens_each, self._buffers, self._job = -1, {}, np.zeros(0, MOE_JOB)
            self._x = self._y = np.zeros((0, 0), np.float32)
        return y

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that the kernels counted as read."""
        return sum(self.counters.bytes_of_node)

    @property
    def bytes_of_node(self) -> list[int]:
        """The same by the node of the workers that read them."""
        return list(self.counters.bytes_of_node)[: self.num_nodes]

    @property
    def seconds(self) -> float:
        return self.counters.total_ns / 1e9


def pack_matrices(
    memory: np.ndarray,
    weights: Rows | Tiles,
    weight_format: WeightFormat,
    pool: Pool | None,
    tasks: Tasks | None = None,
) -> None:
    """A matrix [R, C], or M of them, into tiles (``memory``, uint8), rounded by all workers, or read if they are ready.

    At once, or when ``tasks`` are run. In strips of tile rows, so that a few large matrices keep the workers as busy as
    many small ones.
    """
    now = Tasks() if tasks is None else tasks
    read_tiles = getattr(weights, "read_tiles", None)
    if read_tiles is not None:
        read_tiles(memory, now)
    else:
        alone = len(memory) // (4 * (1 if pool is None else pool.num_workers))  # so that nobody waits long at its end
        now.extend(pack_tasks(memory, weights, weight_format, len(memory) if tasks is not None else max(alone, 1)))
    if tasks is None:
        now.run(None if pool is None or pool.num_workers == 1 or len(memory) < PARALLEL_BYTES else pool)


def pack_tasks(
    memory: np.ndarray, weights: Any, weight_format: WeightFormat, largest_bytes: int
) -> list[tuple[int, Task, Task | None]]:
    """The tasks of ``pack_matrices``: strips of at most ``largest_bytes`` of tiles, or of STRIP_NUMBERS."""
    num_matrices = weights.shape[0] if len(weights.shape) == 3 else None
    num_rows, num_columns = weights.shape[-2:]
    layout = ExpertLayout(num_columns, num_rows, weight_format)
    matrix_bytes, row_bytes = len(memory) // (num_matrices or 1), layout.projection_bytes(TILE_ROWS, num_columns)
    of_numbers = STRIP_NUMBERS // (TILE_ROWS * num_columns)
    rows = max(min(of_numbers, largest_bytes // row_bytes), 1) * TILE_ROWS

    def pack(number: int, first: int, stop: int) -> None:
        start = number * matrix_bytes + first // TILE_ROWS * row_bytes
        tiles = memory[start : start + layout.projection_bytes(stop - first, num_columns)]
        matrix = weights if num_matrices is None else weights[number]
        part = matrix[first:stop]
        quantise_pack(tiles, part if part.dtype == np.uint16 else part.astype(np.float32, copy=False), weight_format)

    def ahead(number: int, first: int, stop: int) -> None:
        matrix = weights if num_matrices is None else weights[number]
        matrix.ahead(slice(first, stop))

    has_ahead = hasattr(weights, "ahead")
    return [
        (
            (stop - first) * num_columns,
            partial(pack, number, first, stop),
            partial(ahead, number, first, stop) if has_ahead else None,
        )
        for number in range(num_matrices or 1)
        for first in range(0, num_rows, rows)
        for stop in [min(first + rows, num_rows)]
    ]


def linear_job(
    packed: PackedLinear, tokens_each: int, allocate: Callable[[str, int], np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """(job record, its buffers, output float32 [rows, R to 16]) for ``tokens_each`` rows of each matrix.

    ``allocate(name, num_bytes)`` gives uint8 memory at a multiple of 64 B.
    """
    count = packed.num_matrices or 1
    rows = tokens_each * count
    groups = rows * -(-packed.num_columns // TILE_COLUMNS) * (TILE_COLUMNS // GROUP)
    stride = -(-packed.num_rows // TILE_ROWS) * TILE_ROWS
    sizes = {
        "output": 4 * rows * stride,
        "tokens_q": groups * GROUP * ACTIVATION_BYTES["native"][packed.activation],
        "tokens_scale": 4 * groups,
        "tokens_offset": 4 * groups,
        "token_of_pair": 4 * rows,
        "pair_start": 8 * (count + 1),
        "expert_weights": 8 * count,
        "ids": 4 * rows,
        "pair_of_slot": 8 * rows,
    }
    buffers = {name: allocate(name, size) for name, size in sizes.items()}
    job = np.zeros(1, MOE_JOB)
    record = job[0]
    record["struct_bytes"], record["abi_version"] = MOE_JOB.itemsize, ABI_VERSION
    record["weight_format_of_projection"] = FORMAT_CODE[packed.weight_format]
    record["activation_mode"] = activation_code(packed.activation, packed.weight_format, packed.isa.isa)
    record["activation_function"] = SILU
    record["hidden_size"], record["intermediate_size"] = packed.num_columns, packed.num_rows
    for name, buffer in buffers.items():
        if name not in ("ids", "pair_of_slot"):
            record[name] = buffer.ctypes.data
    # Rows come matrix by matrix, so that pairs are rows.
    buffers["ids"].view(np.int32)[:] = np.repeat(np.arange(count, dtype=np.int32), tokens_each)
    return job, buffers, buffers["output"].view(np.float32).reshape(rows, stride)
