"""One layer-step as one native call: pairs sorted, quantise | gate_up | down | combine on all workers of a pool.

Inputs are copied into buffers whose addresses never change: after a step of memory-bound kernels nothing of the
interpreter is in the cache, and every Python operation saved here counts several times. Knows buffers and counters;
what the kernels compute is kernels/moelab_kernels.h. Floor 1.
"""

from __future__ import annotations

import ctypes

import numpy as np

from moelab.kernels.job import Activation
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.native import Counters, Forward, KernelTable, check_status, require_library, sized
from moelab.kernels.node_placement import NodePlacement
from moelab.kernels.pool import Pool
from moelab.kernels.scratch import Scratch, aligned

# Workers draw a share of what is left between these two: long runs of memory first, a short tail at the end.
LARGEST_BYTES, SMALLEST_BYTES = 8_000_000, 500_000
_BAD_EXPERT = -4


class StepBuffers:
    """Inputs, outputs and scratch of a step of one shape; layers that run one after the other share one.

    ``version`` rises when addresses change.
    """

    def __init__(self, layout: ExpertLayout, num_experts: int, activation: Activation, isa: str) -> None:
        self.hidden_size = layout.hidden_size
        self.scratch = Scratch(layout, num_experts, activation, isa)
        self.shape = (0, 0)
        self.version = 0
        self._block = aligned(0)

    def reshape(self, num_tokens: int, top_k: int) -> None:
        """T, K of the steps to come."""
        hidden, slots = self.hidden_size, num_tokens * top_k
        self.scratch.reserve(num_tokens, slots)
        sizes = (4 * num_tokens * hidden, 4 * num_tokens * hidden, 4 * slots, 4 * slots, 8 * slots)
        starts = np.concatenate([[0], np.cumsum([-(-size // 64) * 64 for size in sizes])])
        if starts[-1] > len(self._block):
            self._block = aligned(int(starts[-1]))
            self.version += 1  # at once: other layers hold the old addresses
        parts = [self._block[start : start + size] for start, size in zip(starts[:-1], sizes, strict=True)]
        self.addresses = [part.ctypes.data for part in parts]
        self.x = parts[0].view(np.float32).reshape(num_tokens, hidden)
        self.y = parts[1].view(np.float32).reshape(num_tokens, hidden)
        self.ids = parts[2].view(np.int32).reshape(num_tokens, top_k)
        self.gates = parts[3].view(np.float32).reshape(num_tokens, top_k)
        self.shape = (num_tokens, top_k)
        self.version += 1


class NativePhases:
    """``bytes_of_node``, ``seconds_of_node``, ``tail_seconds``, ``seconds``, ``num_calls``: counted by the library."""

    def __init__(
        self,
        layout: ExpertLayout,
        activation: Activation,
        isa: str,
        address_of_expert: np.ndarray,
        node_of_expert: np.ndarray | None,
        table: KernelTable,
        placement: NodePlacement | None = None,
    ) -> None:
        self.layout = layout
        self.counters = sized(Counters)
        self._buffers = StepBuffers(layout, len(address_of_expert), activation, isa)
        self._version = -1
        self._kept = (table, address_of_expert, node_of_expert, placement)  # the structs hold their addresses
        self._function = require_library().moelab_moe_forward
        up_bytes = 2 * layout.projection_bytes(32, layout.hidden_size)
        down_bytes = layout.projection_bytes(16, layout.intermediate_size)
        self.struct = sized(
            Forward,
            table=ctypes.pointer(table),
            x_stride=layout.hidden_size,
            num_experts=len(address_of_expert),
            address_of_expert=address_of_expert.ctypes.data,
            node_of_expert=None if node_of_expert is None else node_of_expert.ctypes.data,
            smallest_up=max(1, SMALLEST_BYTES // up_bytes),
            largest_up=max(1, LARGEST_BYTES // up_bytes),
            smallest_down=max(1, SMALLEST_BYTES // down_bytes),
            largest_down=max(1, LARGEST_BYTES // down_bytes),
            counters=ctypes.pointer(self.counters),
            placement=None if placement is None else placement.struct_address,
        )
        self._address = ctypes.addressof(self.struct)

    def place(self, address_of_expert: np.ndarray, placement: NodePlacement | None) -> None:
        """The tables of the next layer-steps."""
        self._kept = (self._kept[0], address_of_expert, self._kept[2], placement)
        self.struct.address_of_expert = address_of_expert.ctypes.data
        self.struct.placement = None if placement is None else placement.struct_address

    def share_scratch(self, other: NativePhases) -> None:
        """Use the buffers of ``other``, a layer of the same layout, no fewer experts, never run meanwhile."""
        self._buffers, self._version = other._buffers, -1

    def _point(self) -> None:
        buffers, struct = self._buffers, self.struct
        struct.job = buffers.scratch.address
        struct.count_of_expert = buffers.scratch.count_of_expert.ctypes.data
        struct.x, struct.y, struct.expert_ids, struct.gate_weights, struct.pair_of_slot = buffers.addresses
        struct.num_tokens, struct.top_k = buffers.shape
        self._version = buffers.version

    def forward(
        self, pool: Pool | None, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray, out: np.ndarray
    ) -> int:
        """One layer-step into ``out``; returns -1, or the first token that names an expert that does not exist."""
        buffers = self._buffers
        if expert_ids.shape != buffers.shape:
            buffers.reshape(*expert_ids.shape)
        if self._version != buffers.version:
            self._point()
        buffers.x[...] = x
        buffers.gates[...] = gate_weights
        if expert_ids.dtype.itemsize > 4 or expert_ids.dtype == np.uint32:  # beyond int32 is no expert
            expert_ids = np.clip(expert_ids, -1, np.iinfo(np.int32).max)
        buffers.ids[...] = expert_ids
        function, address = self._function, self._address
        status = function(None, address) if pool is None else pool.call(function, address)
        if status == _BAD_EXPERT:
            return int(self.struct.bad_token)
        if status != 0:
            check_status(status, "layer-step")
        out[...] = buffers.y
        return -1

    @property
    def bytes_of_node(self) -> list[int]:
        return list(self.counters.bytes_of_node)

    @property
    def seconds_of_node(self) -> list[float]:
        return [ns / 1e9 for ns in self.counters.ns_of_node]

    @property
    def tail_seconds(self) -> float:
        return self.counters.tail_ns / 1e9

    @property
    def seconds(self) -> float:
        return self.counters.total_ns / 1e9

    @property
    def num_calls(self) -> int:
        return int(self.counters.num_calls)
