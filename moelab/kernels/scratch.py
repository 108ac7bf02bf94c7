"""Buffers of one layer-step: grown when a larger step comes, otherwise reused; the job points into them.

Knows the sizes that the header gives; does not know kernels or threads. Floor 1: NumPy.
"""

from __future__ import annotations

import numpy as np

from moelab.kernels.job import (
    ABI_VERSION,
    FORMAT_CODE,
    GROUP,
    MOE_JOB,
    SILU,
    Activation,
    activation_code,
)
from moelab.kernels.layout import ALIGNMENT, ExpertLayout

# Bytes of one activation number: Numba keeps bf16 activations as float32 numbers.
ACTIVATION_BYTES = {
    "numba": {"f32": 4, "bf16": 4, "int8": 1},
    "native": {"f32": 4, "bf16": 2, "int8": 1},
}


def aligned(num_bytes: int) -> np.ndarray:
    """uint8 [num_bytes] at a multiple of 64 B, pages touched."""
    block = np.zeros(num_bytes + ALIGNMENT, np.uint8)
    first = -block.ctypes.data % ALIGNMENT
    return block[first : first + num_bytes]


class Scratch:
    """The job record of one layout and the buffers behind it, for up to ``capacity`` tokens of K slots."""

    def __init__(self, layout: ExpertLayout, num_experts: int, activation: Activation, isa: str) -> None:
        self.layout = layout
        self.num_experts = num_experts
        self.bytes_of_activation = ACTIVATION_BYTES["numba" if isa == "numba" else "native"][activation]
        self.num_tokens = 0
        self.num_pairs = 0
        self.record = np.zeros(1, MOE_JOB)
        self.address = int(self.record.ctypes.data)
        job = self.record[0]
        job["struct_bytes"] = MOE_JOB.itemsize
        job["abi_version"] = ABI_VERSION
        job["weight_format_of_projection"] = FORMAT_CODE[layout.weight_format]
        job["activation_mode"] = activation_code(activation, layout.weight_format, isa)
        job["activation_function"] = SILU
        job["hidden_size"] = layout.hidden_size
        job["intermediate_size"] = layout.intermediate_size
        self.counters = aligned(1024).view(np.int64)  # atomic counters of the phases, one cache line each
        self.counters_address = int(self.counters.ctypes.data)
        self.count_of_expert = np.zeros(num_experts + 1, np.int64)
        self._buffers: dict[str, np.ndarray] = {}
        self._point("expert_weights", num_experts * 8)
        self._point("pair_start", (num_experts + 1) * 8)
        self.reserve(1, 1)

    def _point(self, name: str, num_bytes: int) -> None:
        self._buffers[name] = aligned(max(num_bytes, 1))
        self.record[name] = self._buffers[name].ctypes.data

    def buffer(self, name: str, dtype: type) -> np.ndarray:
        """A buffer of the job as an array (flat)."""
        return self._buffers[name].view(dtype)

    def reserve(self, num_tokens: int, num_pairs: int) -> None:
        """Room for this many tokens and pairs; nothing happens when there is."""
        layout = self.layout
        # Sizes count as reached only when all buffers are there: an allocation may fail half way.
        if num_tokens > self.num_tokens:
            groups = num_tokens * layout.padded_hidden_size // GROUP
            self._point("tokens_q", groups * GROUP * self.bytes_of_activation)
            self._point("tokens_scale", groups * 4)
            self._point("tokens_offset", groups * 4)
            self.num_tokens = num_tokens
        if num_pairs > self.num_pairs:
            groups = num_pairs * layout.padded_intermediate_size // GROUP
            self._point("token_of_pair", num_pairs * 4)
            self._point("hidden_q", groups * GROUP * self.bytes_of_activation)
            self._point("hidden_scale", groups * 4)
            self._point("hidden_offset", groups * 4)
            self._point("output", num_pairs * layout.output_stride * 4)
            self.num_pairs = num_pairs

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @property
    def output_address(self) -> int:
        return int(self.record["output"][0])
