"""The phases of one layer-step as Numba functions, alone or on a pool, whose workers draw chunks of units from a
counter.

The same bits for any split. Knows how phases follow each other, not what they compute. Its native twin is
``native_phases``. Floor 1.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from moelab.kernels.jit.combine import combine, group_pairs
from moelab.kernels.job import Activation
from moelab.kernels.layout import ExpertLayout
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


def share(total: int, worker: int, num_workers: int) -> tuple[int, int]:
    """``[start, stop)`` of worker ``worker`` when ``total`` is cut into ``num_workers`` ranges."""
    return total * worker // num_workers, total * (worker + 1) // num_workers


class NumbaPhases:
    """Numba functions, one run of the pool for each phase; knows no nodes and no tail."""

    def __init__(self, layout: ExpertLayout, activation: Activation, address_of_expert: np.ndarray) -> None:
        self.layout = layout
        self.seconds = 0.0
        self.num_calls = 0
        self.bytes_of_node = [0]
        self.scratch = Scratch(layout, len(address_of_expert), activation, "numba")
        self.address_of_expert = address_of_expert
        self._pair_of_slot = np.zeros((0, 0), np.int64)
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

    @property
    def seconds_of_node(self) -> list[float]:
        return [self.seconds]

    def share_scratch(self, other: NumbaPhases) -> None:
        """Use the buffers of ``other``, a layer of the same layout, no fewer experts, never run meanwhile."""
        self.scratch = other.scratch

    def forward(
        self, pool: Pool | None, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray, out: np.ndarray
    ) -> int:
        """One layer-step into ``out``; returns -1, or the first token that names an expert that does not exist."""
        started = time.perf_counter()
        x = np.ascontiguousarray(x, np.float32)
        gate_weights = np.ascontiguousarray(gate_weights, np.float32)
        expert_ids = np.ascontiguousarray(expert_ids)
        scratch = self.scratch
        scratch.reserve(len(x), expert_ids.size)
        if self._pair_of_slot.shape != expert_ids.shape:
            self._pair_of_slot = np.zeros(expert_ids.shape, np.int64)
        pair_of_slot = self._pair_of_slot
        num_active = int(
            group_pairs(scratch.address, expert_ids, self.address_of_expert, scratch.count_of_expert, pair_of_slot)
        )
        if num_active < 0:
            return -1 - num_active
        self.bytes_of_node[0] += self._run(pool, num_active, x, gate_weights, pair_of_slot, out)
        self.num_calls += 1
        self.seconds += time.perf_counter() - started
        return -1

    def _run(
        self,
        pool: Pool | None,
        num_active: int,
        x: np.ndarray,
        gate_weights: np.ndarray,
        pair_of_slot: np.ndarray,
        out: np.ndarray,
    ) -> int:
        """All phases of the sorted pairs; returns the bytes of weights that the kernels read."""
        scratch = self.scratch
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
