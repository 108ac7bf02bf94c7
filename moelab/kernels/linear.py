"""Matrices on the routed experts' kernels: y = W x from packed weights, on the same pool, native ISAs only.

For projections, shared experts and the head of a machine without a GPU, where the always-active weights of a large
model are read for every token and should be as small as the experts. Knows matrices and buffers; does not know
models or torch. Floor 1.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np

from moelab.kernels.isa import IsaChoice, choose_isa
from moelab.kernels.job import (
    ABI_VERSION,
    ACTIVATION_CODE,
    ACTIVATIONS_OF_FORMAT,
    FORMAT_CODE,
    GROUP,
    MOE_JOB,
    SILU,
    TILE_ROWS,
    Activation,
    WeightFormat,
)
from moelab.kernels.layout import ExpertLayout, quantise_pack
from moelab.kernels.native import Counters, Forward, check_status, kernel_table, require_library
from moelab.kernels.native_phases import LARGEST_BYTES, SMALLEST_BYTES
from moelab.kernels.pages import map_pages
from moelab.kernels.pool import Pool
from moelab.kernels.routed import ALONE_BYTES
from moelab.kernels.scratch import ACTIVATION_BYTES, aligned

# Buffers of larger steps are given back at once: every matrix of a model has its own.
KEEP_TOKENS = 16


PARALLEL_BYTES = 500_000  # below this one worker packs a matrix before the others are awake
STRIP_BYTES = 2_000_000  # of tiles, about: what a worker packs at once


class Rows(Protocol):
    """A matrix [R, C] or [M, R, C] whose rows come as float32 or bf16 bits (uint16): an array, a part of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class Tiles(Protocol):
    """A matrix [R, C] (or [M, R, C]) that is packed already."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read_tiles(self, memory: np.ndarray, pool: Pool | None) -> None:
        """Its tiles into ``memory`` (uint8, all of them)."""


class PackedLinear:
    """``weights`` [R, C], rounded to ``weight_format`` and packed (``Tiles``: as they are); float32 x [T, C] -> [T, R].

    Or M matrices of one shape, [M, R, C], each with its own inputs: x [M, T, C] -> [M, T, R].

    ``activation`` defaults to the mode of the format. ``pool`` is not owned. Raises ``ValueError`` for a format or mode
    that does not exist and ``RuntimeError`` without native kernels.
    """

    def __init__(
        self,
        weights: Rows | Tiles,
        weight_format: WeightFormat,
        isa: str | None = None,
        activation: Activation | None = None,
        pool: Pool | None = None,
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
        self._pages = map_pages(self.num_bytes)
        read_tiles = getattr(weights, "read_tiles", None)
        if read_tiles is not None:
            read_tiles(self.tiles, pool)
        else:
            self._pack(weights, layout, matrix_bytes)
        self._layout = layout
        self._address_of_matrix = self._pages.memory.ctypes.data + matrix_bytes * np.arange(count, dtype=np.int64)
        self._count = np.zeros(count + 1, np.int64)
        self._table = kernel_table(self.isa.isa, weight_format, self.activation)
        self._function = require_library().moelab_linear_forward
        self.counters = Counters()
        self._job = np.zeros(1, MOE_JOB)
        row_bytes = layout.projection_bytes(TILE_ROWS, self.num_columns)
        self._struct = Forward(
            struct_bytes=ctypes.sizeof(Forward),
            abi_version=ABI_VERSION,
            job=self._job.ctypes.data,
            table=ctypes.pointer(self._table),
            x_stride=self.num_columns,
            top_k=1,
            num_experts=count,
            count_of_expert=self._count.ctypes.data,
            address_of_expert=self._address_of_matrix.ctypes.data,
            smallest_up=max(1, SMALLEST_BYTES // row_bytes),
            largest_up=max(1, LARGEST_BYTES // row_bytes),
            counters=ctypes.pointer(self.counters),
        )
        self._reference = ctypes.addressof(self._struct)
        self._tokens_each = -1

    def _pack(self, weights: Any, layout: ExpertLayout, matrix_bytes: int) -> None:
        """Strips of tile rows, drawn by all workers: a few large matrices keep them as busy as many small ones."""
        row_bytes = layout.projection_bytes(TILE_ROWS, self.num_columns)
        workers = 1 if self.pool is None else self.pool.num_workers
        rows = min(STRIP_BYTES, max(self.num_bytes // (4 * workers), 1)) // row_bytes * TILE_ROWS or TILE_ROWS
        strips = [
            (number, first, min(first + rows, self.num_rows))
            for number in range(self.num_matrices or 1)
            for first in range(0, self.num_rows, rows)
        ]

        def pack(strip: int) -> None:
            number, first, stop = strips[strip]
            start = number * matrix_bytes + first // TILE_ROWS * row_bytes
            tiles = self.tiles[start : start + layout.projection_bytes(stop - first, self.num_columns)]
            matrix = weights if self.num_matrices is None else weights[number]
            part = matrix[first:stop]
            quantise_pack(
                tiles, part if part.dtype == np.uint16 else part.astype(np.float32, copy=False), self.weight_format
            )

        if self.pool is None or workers == 1 or self.num_bytes < PARALLEL_BYTES:
            for strip in range(len(strips)):
                pack(strip)
        else:
            self.pool.draw(len(strips), pack)

    @property
    def tiles(self) -> np.ndarray:
        """The packed matrices, uint8 [num_bytes], one after the other."""
        return self._pages.memory

    def _reshape(self, tokens_each: int) -> None:
        layout, job, count = self._layout, self._job[0], self.num_matrices or 1
        num_tokens = tokens_each * count
        groups = num_tokens * layout.padded_hidden_size // GROUP
        stride = -(-self.num_rows // TILE_ROWS) * TILE_ROWS
        sizes = {
            "x": 4 * num_tokens * self.num_columns,
            "output": 4 * num_tokens * stride,
            "tokens_q": groups * GROUP * ACTIVATION_BYTES["native"][self.activation],
            "tokens_scale": 4 * groups,
            "tokens_offset": 4 * groups,
            "token_of_pair": 4 * num_tokens,
            "pair_start": 8 * (count + 1),
            "expert_weights": 8 * count,
            "ids": 4 * num_tokens,
            "pair_of_slot": 8 * num_tokens,
        }
        self._buffers = {name: aligned(size) for name, size in sizes.items()}
        job["struct_bytes"], job["abi_version"] = MOE_JOB.itemsize, ABI_VERSION
        job["weight_format_of_projection"] = FORMAT_CODE[self.weight_format]
        job["activation_mode"] = ACTIVATION_CODE[self.activation]
        job["activation_function"] = SILU
        job["hidden_size"], job["intermediate_size"] = self.num_columns, self.num_rows
        for name, buffer in self._buffers.items():
            if name not in ("x", "ids", "pair_of_slot"):
                job[name] = buffer.ctypes.data
        self._x: np.ndarray = self._buffers["x"].view(np.float32).reshape(num_tokens, self.num_columns)
        output = self._buffers["output"].view(np.float32)
        self._y: np.ndarray = output.reshape(num_tokens, stride)[:, : self.num_rows]
        self._struct.x, self._struct.num_tokens = self._buffers["x"].ctypes.data, num_tokens
        if self.num_matrices is not None:
            # Rows come matrix by matrix, so that pairs are rows.
            self._buffers["ids"].view(np.int32)[:] = np.repeat(np.arange(count, dtype=np.int32), tokens_each)
            self._struct.expert_ids = self._buffers["ids"].ctypes.data
            self._struct.pair_of_slot = self._buffers["pair_of_slot"].ctypes.data
            self._x = self._x.reshape(count, tokens_each, self.num_columns)
            self._y = output.reshape(count, tokens_each, stride)[..., : self.num_rows]
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
            self._tokens_each, self._buffers = -1, {}
            self._x = self._y = np.zeros((0, 0), np.float32)
        return y

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that the kernels counted as read."""
        return sum(self.counters.bytes_of_node)

    @property
    def seconds(self) -> float:
        return self.counters.total_ns / 1e9
