"""kt-kernel 0.7 (KTransformers): ``AMXInt4_KGroup_MOE``, the path that it takes for Kimi K2 on AVX-512 and AMX.

Weights enter as compressed-tensors packs them (low nibble first, value + 8, a bf16 scale per group of 32 columns) and
are kept with float32 scales: 5 bits a weight. Activations are bfloat16 outside; its error is that of 8 bits inside.
To be remembered beside its figures: the calling thread spins while ``num_threads`` pinned workers compute, so one
core more than that is busy, and workers go on spinning for 50 ms after a step (its sources); a layer that is
destroyed does not free its weights, so each peer made costs its memory until the process ends (measured).
It prints to stdout, which is held back here. Does not know how its kernels work. Floor 6.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

from moelab.bench.peers.int4_groups import GROUP, quantise_int4
from moelab.bench.peers.peer import Experts, check_step, projections, why_not
from moelab.kernels.layout import bf16_to_float32, float32_to_bf16

BACKEND = "AMXInt4_KGroup_MOE"
BLOCK = 128  # with any other size it reads outside its buffers


@contextmanager
def silent_stdout() -> Iterator[None]:
    """Sends file descriptor 1 to nowhere: the prints of C code would stand in the middle of a table or of JSON."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        libc.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class KtKernelInt4:
    """One layer; ``top_k`` and ``max_tokens`` size its buffers and bound every step."""

    name = "kt-kernel AMXInt4_KGroup"

    @staticmethod
    def available() -> str | None:
        reason = why_not("kt_kernel")
        if reason is None:
            module = import_module("kt_kernel")
            if not hasattr(module.kt_kernel_ext.moe, BACKEND):
                return f"no {BACKEND} for this CPU (variant {module.__cpu_variant__})"
        return reason

    @staticmethod
    def version() -> str:
        return f"kt-kernel {version('kt-kernel')} {import_module('kt_kernel').__cpu_variant__}"

    def __init__(
        self,
        experts: Experts,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        num_threads: int,
        top_k: int = 8,
        max_tokens: int = 128,
    ) -> None:
        if hidden_size % BLOCK or intermediate_size % BLOCK:
            raise ValueError(
                f"{self.name}: expected sizes in multiples of {BLOCK}, got {hidden_size}, {intermediate_size}"
            )
        ext: Any = import_module("kt_kernel").kt_kernel_ext
        self.num_experts, self.hidden_size = num_experts, hidden_size
        self.top_k, self.max_tokens = min(top_k, num_experts), max_tokens
        bits_per_weight = 4 + 32 // GROUP  # its buffers keep the scales as float32
        self.weight_bytes_per_expert: int = 3 * hidden_size * intermediate_size * bits_per_weight // 8
        packed = [
            [_pack(matrix) for matrix in projections(experts, expert, hidden_size, intermediate_size)]
            for expert in range(num_experts)
        ]
        workers = ext.WorkerPoolConfig()
        workers.subpool_count, workers.subpool_numa_map, workers.subpool_thread_count = 1, [0], [num_threads]
        self._on_gpu = np.zeros(num_experts, np.uint8)  # the C++ side keeps its address
        config = ext.moe.MOEConfig(num_experts, self.top_k, hidden_size, intermediate_size, self._on_gpu.ctypes.data)
        config.layer_idx, config.max_len = 0, max_tokens
        for index, projection in enumerate(("gate", "up", "down")):
            setattr(config, f"{projection}_projs", [[expert[index][0].ctypes.data for expert in packed]])
            setattr(config, f"{projection}_scales", [[expert[index][1].ctypes.data for expert in packed]])
        config.quant_config.bits, config.quant_config.group_size = 4, GROUP
        config.quant_config.zero_point = False
        order = np.arange(num_experts, dtype=np.uint64)
        with silent_stdout():
            self._engine: Any = ext.CPUInfer(workers)
            config.pool = self._engine.backend_
            self._layer: Any = getattr(ext.moe, BACKEND)(config)
            self._engine.submit(self._layer.load_weights_task(order.ctypes.data))
            self._engine.sync()

    def forward(self, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray) -> np.ndarray:
        check_step(x, expert_ids, gate_weights, self.num_experts, self.hidden_size)
        num_tokens, slots = expert_ids.shape
        if num_tokens > self.max_tokens or slots > self.top_k:
            raise ValueError(
                f"expected at most {self.max_tokens} tokens of {self.top_k} slots, got {num_tokens} of {slots}: "
                "make the peer with larger max_tokens or top_k"
            )
        inputs = np.ascontiguousarray(float32_to_bf16(x))
        ids = np.ascontiguousarray(expert_ids, np.int64)
        gates = np.ascontiguousarray(gate_weights, np.float32)
        count, out = np.array([num_tokens], np.int32), np.empty(x.shape, np.uint16)
        # Called directly: its task queue would put one more spinning thread between us and the workers.
        addresses = (array.ctypes.data for array in (ids, gates, inputs, out))
        self._layer.forward(count.ctypes.data, slots, *addresses, False)
        return bf16_to_float32(out)

    def close(self) -> None:
        with silent_stdout():
            self._layer = None  # before the engine, whose workers it points to
            self._engine = None


def _pack(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, C] -> (uint8 [R, C/2], bf16 bits uint16 [R, C/32])."""
    q, scale = quantise_int4(matrix)
    nibbles = (q + 8).view(np.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), scale
