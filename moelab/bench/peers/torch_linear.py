"""PyTorch on the CPU: bfloat16 ``linear``, plain and prepacked, and int4 by ``_weight_int4pack_mm_for_cpu``.

Three calls for each distinct expert of the step, tokens gathered by expert, the sum over slots in float32. All keep
activations in bfloat16. Knows nothing of time: intra-op threads are a setting of the whole process, so it is put
in place before each step and put back by ``close``. Floor 6; torch is imported when a peer is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

from moelab.bench.peers.int4_groups import GROUP, quantise_int4
from moelab.bench.peers.peer import Experts, check_step, projections, why_not


def slots_of_expert(expert_ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each distinct expert of int [T, K] with the flat slots ``token * K + k`` that it serves."""
    flat = expert_ids.ravel()
    order = np.argsort(flat, kind="stable")
    experts, starts = np.unique(flat[order], return_index=True)
    yield from zip(experts.tolist(), np.split(order, starts[1:]), strict=True)


class TorchBf16:
    """``torch.nn.functional.linear`` in bfloat16: 16 bits a weight."""

    name = "torch bf16 linear"

    @staticmethod
    def available() -> str | None:
        return why_not("torch")

    @staticmethod
    def version() -> str:
        return f"torch {version('torch')}"

    def __init__(
        self, experts: Experts, num_experts: int, hidden_size: int, intermediate_size: int, num_threads: int
    ) -> None:
        self._torch: Any = import_module("torch")
        self.num_experts, self.hidden_size, self.num_threads = num_experts, hidden_size, num_threads
        self._threads_before = self._torch.get_num_threads()
        self._weights: list[tuple[Any, ...]] = []
        for expert in range(num_experts):
            matrices = projections(experts, expert, hidden_size, intermediate_size)
            self._weights.append(tuple(self._pack(matrix) for matrix in matrices))
        self.weight_bytes_per_expert: int = sum(self._num_bytes(packed) for packed in self._weights[0])

    def _pack(self, matrix: np.ndarray) -> Any:
        return self._torch.from_numpy(matrix).to(self._torch.bfloat16)

    def _num_bytes(self, packed: Any) -> int:
        return int(packed.nbytes)

    def _linear(self, x: Any, packed: Any) -> Any:
        return self._torch.nn.functional.linear(x, packed)

    def forward(self, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray) -> np.ndarray:
        check_step(x, expert_ids, gate_weights, self.num_experts, self.hidden_size)
        torch = self._torch
        if torch.get_num_threads() != self.num_threads:
            torch.set_num_threads(self.num_threads)
        with torch.inference_mode():
            inputs = torch.from_numpy(x).to(torch.bfloat16)
            gates = torch.from_numpy(np.ascontiguousarray(gate_weights, np.float32)).view(-1, 1)
            out = torch.zeros(x.shape, dtype=torch.float32)
            for expert, expert_slots in slots_of_expert(expert_ids):
                gate, up, down = self._weights[expert]
                slots = torch.from_numpy(expert_slots)
                tokens = slots // expert_ids.shape[1]
                rows = inputs[tokens]
                hidden = torch.nn.functional.silu(self._linear(rows, gate)) * self._linear(rows, up)
                out.index_add_(0, tokens, self._linear(hidden, down).float() * gates[slots])
        return out.numpy()

    def close(self) -> None:
        self._weights = []
        self._torch.set_num_threads(self._threads_before)


class TorchBf16Prepacked(TorchBf16):
    """The same by oneDNN on weights in its own blocked order, as a compiled and frozen model has them.

    Packed for PACKED_FOR tokens, for the plain one is asked to reorder its weights at each call of a large batch.
    """

    name = "torch bf16 prepacked"
    PACKED_FOR = 128

    @staticmethod
    def available() -> str | None:
        reason = why_not("torch")
        if reason is None:
            torch = import_module("torch")
            if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
                return "torch without oneDNN's packed linear layers"
        return reason

    def _pack(self, matrix: np.ndarray) -> Any:
        self._matrix_bytes = 2 * matrix.size  # of a packed tensor torch does not say
        return self._torch.ops.mkldnn._reorder_linear_weight(super()._pack(matrix), self.PACKED_FOR)

    def _num_bytes(self, packed: Any) -> int:
        return self._matrix_bytes

    def _linear(self, x: Any, packed: Any) -> Any:
        return self._torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


class TorchInt4(TorchBf16):
    """``aten::_weight_int4pack_mm_for_cpu``, group 32 with a bf16 scale and a bf16 zero: 5 bits a weight."""

    name = "torch _weight_int4pack_mm"

    @staticmethod
    def available() -> str | None:
        reason = why_not("torch")
        if reason is None and not hasattr(import_module("torch").ops.aten, "_weight_int4pack_mm_for_cpu"):
            return "torch without _weight_int4pack_mm_for_cpu"
        return reason

    def _pack(self, matrix: np.ndarray) -> Any:
        """(nibbles uint8 [R, C/2] in torch's order, bf16 [C/32, R, 2]); an element is (nibble - 8) * scale + zero."""
        torch = self._torch
        q, scale = quantise_int4(matrix)
        nibbles = torch.from_numpy(q).to(torch.int32) + 8
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
        scales = torch.from_numpy(scale).view(torch.bfloat16).T
        return packed, torch.stack((scales, torch.zeros_like(scales)), -1).contiguous()

    def _num_bytes(self, packed: Any) -> int:
        return sum(int(part.nbytes) for part in packed)

    def _linear(self, x: Any, packed: Any) -> Any:
        return self._torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed[0], GROUP, packed[1])
