"""The phases of one layer-step on one ISA: Numba functions or native pointers, alone or on a pool.

On a pool, Numba workers draw chunks of units from an atomic counter; native workers take equal ranges.
Both give the same bits for any split. Knows how phases follow each other, not what they compute. Floor 1.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np

from moelab.kernels.jit.combine import combine, group_pairs
from moelab.kernels.job import ACTIVATION_CODE, Activation
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.native import KernelTable, check_status, require_library
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


class _Phases:
    """What both kinds share: unit counts, grouping, and the order of the phases."""

    def __init__(self, layout: ExpertLayout) -> None:
        self.layout = layout
        self.gate_up_units = -(-layout.intermediate_size // 32)
        self.down_units = -(-layout.hidden_size // 16)

    def group(
        self, scratch: Scratch, expert_ids: np.ndarray, address_of_expert: np.ndarray, pair_of_slot: np.ndarray
    ) -> int:
        """Sort pairs by expert into the job; the number of active experts, or -1 - t for a bad id of token t."""
        return int(group_pairs(scratch.address, expert_ids, address_of_expert, scratch.count_of_expert, pair_of_slot))


class NumbaPhases(_Phases):
    def __init__(self, layout: ExpertLayout, activation: Activation) -> None:
        super().__init__(layout)
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


class NativePhases(_Phases):
    def __init__(self, layout: ExpertLayout, activation: Activation, table: KernelTable) -> None:
        super().__init__(layout)
        self.table = table
        self.mode = ACTIVATION_CODE[activation]
        self.library = require_library()

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
        job, layout = scratch.record, self.layout
        num_tokens, top_k = pair_of_slot.shape
        status = self.library.moelab_quantise(
            self.mode,
            num_tokens,
            layout.hidden_size,
            layout.padded_hidden_size,
            x.ctypes.data,
            layout.hidden_size,
            int(job["tokens_q"][0]),
            int(job["tokens_scale"][0]),
            int(job["tokens_offset"][0]),
        )
        check_status(status, "quantise")
        bytes_read = 0
        for phase, units in (
            (self.table.gate_up, num_active * self.gate_up_units),
            (self.table.down, num_active * self.down_units),
        ):
            bytes_read += self._run_phase(phase, scratch.address, units, pool)
        status = self.library.moelab_combine(
            num_tokens,
            top_k,
            layout.hidden_size,
            layout.output_stride,
            pair_of_slot.ctypes.data,
            gate_weights.ctypes.data,
            scratch.output_address,
            out.ctypes.data,
        )
        check_status(status, "combine")
        return bytes_read

    @staticmethod
    def _run_phase(phase: Any, job: int, units: int, pool: Pool | None) -> int:
        read: list[int] = []

        def work(worker: int, num_workers: int) -> None:
            bytes_read = ctypes.c_uint64(0)
            start, stop = share(units, worker, num_workers)
            check_status(phase(job, start, stop, ctypes.byref(bytes_read)), "phase")
            read.append(bytes_read.value)

        if pool is None:
            work(0, 1)
        else:
            pool.run(work)
        return sum(read)
