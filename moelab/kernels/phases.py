"""The phases of one layer-step on one ISA: Numba functions or native pointers, alone or on a pool.

On a pool, workers draw chunks of units from an atomic counter: Numba by phases, the native library in one run.
Both give the same bits for any split. Knows how phases follow each other, not what they compute. Floor 1.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

from moelab.kernels.jit.combine import combine, group_pairs
from moelab.domain.trace import NO_EXPERT
from moelab.kernels.job import ABI_VERSION, Activation
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.native import MAX_NODES, Counters, Forward, KernelTable, check_status, require_library
from moelab.kernels.pool import Pool
from moelab.kernels.scratch import Scratch

_NUMBA_FILE = {
    ("float32", "f32"): "float32",
    ("bf16", "bf16"): "bf16",
    ("int4_g32", "bf16"): "int4_bf16",
    ("int4_g32", "int8"): "int4_int8",
}

# From this many tokens on, quantise and combine are shared by the workers too.
SHARED_TOKENS = 16

# Bytes of weights in one chunk of units: large for the prefetcher (four streams run through it), yet every
# worker draws at least CHUNKS_PER_WORKER chunks, so that a slow one does not hold up the others.
CHUNK_BYTES = 1_000_000
CHUNKS_PER_WORKER = 8

# Native workers draw a share of what is left between these two: long runs of memory first, a short tail at the end.
LARGEST_BYTES, SMALLEST_BYTES = 2_000_000, 128_000


def share(total: int, worker: int, num_workers: int) -> tuple[int, int]:
    """``[start, stop)`` of worker ``worker`` when ``total`` is cut into ``num_workers`` ranges."""
    return total * worker // num_workers, total * (worker + 1) // num_workers


class NumbaPhases:
    """Numba functions, one run of the pool for each phase; knows no nodes."""

    def __init__(self, layout: ExpertLayout, activation: Activation) -> None:
        self.layout = layout
        self.gate_up_units = -(-layout.intermediate_size // 32)
        self.down_units = -(-layout.hidden_size // 16)
        if (layout.weight_format, activation) not in _NUMBA_FILE:
            raise ValueError(
                f"isa numba: expected weights in {', '.join(sorted({f for f, _ in _NUMBA_FILE}))}; got "
                f"{layout.weight_format}: choose a native isa (moelab doctor lists them)"
            )
        self.kernels: Any = importlib.import_module(
            "moelab.kernels.jit." + _NUMBA_FILE[layout.weight_format, activation]
        )
        up_bytes = 2 * layout.projection_bytes(32, layout.hidden_size)
        down_bytes = layout.projection_bytes(16, layout.intermediate_size)
        self.gate_up_chunk = max(1, CHUNK_BYTES // up_bytes)
        self.down_chunk = max(1, CHUNK_BYTES // down_bytes)

    def group(
        self,
        scratch: Scratch,
        expert_ids: np.ndarray,
        address_of_expert: np.ndarray,
        pair_of_slot: np.ndarray,
        node_of_expert: np.ndarray | None = None,
        num_nodes: int = 1,
    ) -> int:
        """Sort pairs by expert into the job; the number of active experts, or -1 - t for a bad id of token t."""
        return int(group_pairs(scratch.address, expert_ids, address_of_expert, scratch.count_of_expert, pair_of_slot))

    def run(
        self,
        scratch: Scratch,
        pool: Pool | None,
        num_active: int,
        x: np.ndarray,
        gate_weights: np.ndarray,
        pair_of_slot: np.ndarray,
        out: np.ndarray,
    ) -> int:
        """All phases; returns the bytes of weights that the kernels read."""
        kernels, job = self.kernels, scratch.address
        num_tokens = len(x)
        up_units, down_units = num_active * self.gate_up_units, num_active * self.down_units
        if pool is None:
            kernels.quantise_tokens(job, x, 0, num_tokens)
            bytes_read = kernels.gate_up(job, 0, up_units) + kernels.down(job, 0, down_units)
            combine(pair_of_slot, gate_weights, scratch.output_address, self.layout.output_stride, out, 0, num_tokens)
            return int(bytes_read)
        counters = scratch.counters
        counters[0] = counters[8] = 0
        base = scratch.counters_address
        shared = num_tokens >= SHARED_TOKENS
        if shared:
            pool.run(lambda w, n: kernels.quantise_tokens(job, x, *share(num_tokens, w, n)))
        else:
            kernels.quantise_tokens(job, x, 0, num_tokens)
        num_chunks = CHUNKS_PER_WORKER * pool.num_workers
        gate_up_chunk = max(1, min(self.gate_up_chunk, up_units // num_chunks))
        down_chunk = max(1, min(self.down_chunk, down_units // num_chunks))
        read: list[int] = []  # one number of each worker and phase
        pool.run(lambda w, n: read.append(kernels.gate_up_shared(job, base, gate_up_chunk, up_units)))
        pool.run(lambda w, n: read.append(kernels.down_shared(job, base + 64, down_chunk, down_units)))
        output, stride = scratch.output_address, self.layout.output_stride
        if shared:
            pool.run(lambda w, n: combine(pair_of_slot, gate_weights, output, stride, out, *share(num_tokens, w, n)))
        else:
            combine(pair_of_slot, gate_weights, output, stride, out, 0, num_tokens)
        return sum(read)


class NativePhases:
    """One native call for a whole layer-step; what it read and how long it took stands in ``counters``."""

    def __init__(self, layout: ExpertLayout, activation: Activation, table: KernelTable) -> None:
        self.layout = layout
        self.table = table
        self.library = require_library()
        self.counters = Counters()
        self._stop_of_node = np.zeros(MAX_NODES, np.int64)
        up_bytes = 2 * layout.projection_bytes(32, layout.hidden_size)
        down_bytes = layout.projection_bytes(16, layout.intermediate_size)
        self.forward = Forward(
            struct_bytes=ctypes.sizeof(Forward),
            abi_version=ABI_VERSION,
            table=ctypes.pointer(table),
            x_stride=layout.hidden_size,
            expert_stop_of_node=self._stop_of_node.ctypes.data,
            smallest_up=max(1, SMALLEST_BYTES // up_bytes),
            largest_up=max(1, LARGEST_BYTES // up_bytes),
            smallest_down=max(1, SMALLEST_BYTES // down_bytes),
            largest_down=max(1, LARGEST_BYTES // down_bytes),
            counters=ctypes.pointer(self.counters),
        )
        self._reference = ctypes.byref(self.forward)

    def group(
        self,
        scratch: Scratch,
        expert_ids: np.ndarray,
        address_of_expert: np.ndarray,
        pair_of_slot: np.ndarray,
        node_of_expert: np.ndarray | None = None,
        num_nodes: int = 1,
    ) -> int:
        """As ``NumbaPhases.group``, experts of node 0 first."""
        if expert_ids.dtype != np.int32:
            if expert_ids.dtype.kind != "u" or expert_ids.dtype.itemsize > 2:  # ids that int32 cannot hold become -1
                expert_ids = np.where((expert_ids < 0) | (expert_ids > NO_EXPERT), -1, expert_ids)
            expert_ids = expert_ids.astype(np.int32)
        num_tokens, top_k = expert_ids.shape
        forward = self.forward
        forward.num_tokens, forward.top_k, forward.num_nodes = num_tokens, top_k, num_nodes
        forward.pair_of_slot = pair_of_slot.ctypes.data
        return int(
            self.library.moelab_group(
                scratch.address, expert_ids.ctypes.data, num_tokens, top_k,
                len(address_of_expert), address_of_expert.ctypes.data,
                None if node_of_expert is None else node_of_expert.ctypes.data, num_nodes,
                scratch.count_of_expert.ctypes.data, forward.pair_of_slot, forward.expert_stop_of_node,
            )
        )  # fmt: skip

    def run(
        self,
        scratch: Scratch,
        pool: Pool | None,
        num_active: int,
        x: np.ndarray,
        gate_weights: np.ndarray,
        pair_of_slot: np.ndarray,
        out: np.ndarray,
    ) -> int:
        """All phases of what ``group`` has sorted; returns the bytes of weights that the kernels read."""
        forward, counters = self.forward, self.counters
        forward.job, forward.x = scratch.address, x.ctypes.data
        forward.gate_weights, forward.y = gate_weights.ctypes.data, out.ctypes.data
        before = sum(counters.bytes_of_node)
        function = self.library.moelab_moe_forward
        status = function(None, self._reference) if pool is None else pool.call(function, self._reference)
        check_status(status, "layer-step")
        return int(sum(counters.bytes_of_node)) - before
