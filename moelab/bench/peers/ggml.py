"""ggml on the CPU: llama.cpp's expert layer (``ggml_mul_mat_id`` three times) on Q4_0 or Q4_K, plain or repacked.

One graph for each batch size: gate, up, ``swiglu_split``, down, times the gate weights, added slot by slot, as
llama.cpp builds it. ``repacked`` puts the weights in the CPU backend's extra buffer type ``CPU_REPACK``, which
interleaves rows while they are copied in (what llama.cpp does by default). Activations are quantised to 8 bits by
ggml. The package brings its own ggml, built when it was installed: ``version`` says which. Its threads are those of
OpenMP where it was built with it. Does not know which kernel ggml picks. Floor 6; ggml is imported when a peer is made.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

from moelab.bench.peers.peer import Experts, check_step, projections, why_not

REPACK = b"CPU_REPACK"


@dataclass(frozen=True)
class StepGraph:
    """The graph of one [T, K], its tensors of input and output, and what must be freed."""

    context: Any
    allocator: Any
    graph: Any
    x: Any
    expert_ids: Any
    gate_weights: Any
    out: Any


def repack_buffer_type(ggml: Any) -> Any:
    """The buffer type ``CPU_REPACK``, or ``None`` where this build or this CPU has none."""
    registry = ggml.ggml_backend_cpu_reg()
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return None
    listing = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
    types = listing(ggml.ggml_backend_reg_dev_get(registry, 0))
    index = 0
    while types and types[index]:
        if ggml.ggml_backend_buft_name(types[index]) == REPACK:
            return types[index]
        index += 1
    return None


class GgmlQ40:
    """18 bytes per 32 weights (an fp16 scale): 4.5 bits a weight."""

    name = "ggml Q4_0 plain"
    weight_type = "GGML_TYPE_Q4_0"
    repacked = False

    @classmethod
    def _why_not(cls) -> str | None:
        reason = why_not("ggml")
        if reason is None and cls.repacked and repack_buffer_type(import_module("ggml")) is None:
            return f"no buffer type {REPACK.decode()} in this ggml"
        return reason

    @staticmethod
    def available() -> str | None:
        return GgmlQ40._why_not()

    @staticmethod
    def version() -> str:
        return f"ggml {import_module('ggml').ggml_version().decode()} (ggml-python {version('ggml-python')})"

    def __init__(
        self, experts: Experts, num_experts: int, hidden_size: int, intermediate_size: int, num_threads: int
    ) -> None:
        """Quantises every expert, then fills one buffer for each projection, so that memory peaks at about 4/3."""
        self._ggml: Any = import_module("ggml")
        self.num_experts, self.hidden_size, self.intermediate_size = num_experts, hidden_size, intermediate_size
        self._type: int = getattr(self._ggml, self.weight_type)
        block = self._ggml.ggml_blck_size(self._type)
        if hidden_size % block or intermediate_size % block:
            raise ValueError(
                f"{self.name}: expected sizes in multiples of {block}, got {hidden_size}, {intermediate_size}"
            )
        self._backend: Any = self._ggml.ggml_backend_cpu_init()
        self._ggml.ggml_backend_cpu_set_n_threads(self._backend, num_threads)
        # Not ggml_backend_cpu_buffer_type(): the binding of 0.0.45 cuts its pointer to 32 bits.
        self._plain: Any = self._ggml.ggml_backend_get_default_buffer_type(self._backend)
        wide, tall = (intermediate_size, hidden_size), (hidden_size, intermediate_size)
        staged: list[np.ndarray] = [self._stage(rows, columns) for rows, columns in (wide, wide, tall)]
        for expert in range(num_experts):
            matrices = projections(experts, expert, hidden_size, intermediate_size)
            for into, matrix in zip(staged, matrices, strict=True):
                self._quantise(matrix, into[expert])
        self.weight_bytes_per_expert: int = sum(into.nbytes for into in staged) // num_experts
        self._weights: list[tuple[Any, Any, Any]] = []  # context, buffer, tensor of gate, up, down
        for rows, columns in (wide, wide, tall):
            self._weights.append(self._load(staged.pop(0), rows, columns))
        self._graphs: dict[tuple[int, int], StepGraph] = {}

    def _stage(self, rows: int, columns: int) -> np.ndarray:
        return np.empty((self.num_experts, rows * self._ggml.ggml_row_size(self._type, columns)), np.uint8)

    def _quantise(self, matrix: np.ndarray, into: np.ndarray) -> None:
        rows, columns = matrix.shape
        source = matrix.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._ggml.ggml_quantize_chunk(self._type, source, into.ctypes.data, 0, rows, columns, None)

    def _load(self, staged: np.ndarray, rows: int, columns: int) -> tuple[Any, Any, Any]:
        """A tensor [E, rows, columns] in its own buffer. ``ValueError`` where nothing repacks such a matrix."""
        ggml = self._ggml
        context = ggml.ggml_init(ggml.ggml_init_params(ggml.ggml_tensor_overhead(), None, True))
        tensor = ggml.ggml_new_tensor_3d(context, self._type, columns, rows, self.num_experts)
        buffer_type = repack_buffer_type(ggml) if self.repacked else self._plain
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise MemoryError(f"{self.name}: {staged.nbytes / 1e9:.2f} GB for one projection were refused")
        if self.repacked and not tensor.contents.extra:
            raise ValueError(f"{self.name}: no repacked kernel for {rows} x {columns} on this CPU")
        quiet = ggml.ggml_log_callback(lambda level, text, data: None)  # one line of stderr for each repacked tensor
        ggml.ggml_log_set(quiet, None)
        ggml.ggml_backend_tensor_set(tensor, staged.ctypes.data, 0, staged.nbytes)
        ggml.ggml_log_set(ggml.ggml_log_callback(), None)
        return context, buffer, tensor

    def _build(self, num_tokens: int, top_k: int) -> StepGraph:
        ggml = self._ggml
        size = 64 * ggml.ggml_tensor_overhead() + ggml.ggml_graph_overhead() + 2 * top_k * ggml.ggml_tensor_overhead()
        context = ggml.ggml_init(ggml.ggml_init_params(size, None, True))
        gate, up, down = (tensor for _, _, tensor in self._weights)
        x = ggml.ggml_new_tensor_3d(context, ggml.GGML_TYPE_F32, self.hidden_size, 1, num_tokens)
        ids = ggml.ggml_new_tensor_2d(context, ggml.GGML_TYPE_I32, top_k, num_tokens)
        gates = ggml.ggml_new_tensor_3d(context, ggml.GGML_TYPE_F32, 1, top_k, num_tokens)
        for tensor in (x, ids, gates):
            ggml.ggml_set_input(tensor)
        up_out = ggml.ggml_mul_mat_id(context, up, x, ids)
        hidden = ggml.ggml_swiglu_split(context, ggml.ggml_mul_mat_id(context, gate, x, ids), up_out)
        slots = ggml.ggml_mul(context, ggml.ggml_mul_mat_id(context, down, hidden, ids), gates)  # [T, K, H]
        strides = slots.contents.nb
        views = [
            ggml.ggml_view_2d(context, slots, self.hidden_size, num_tokens, strides[2], k * strides[1])
            for k in range(top_k)
        ]
        out = views[0]
        for view in views[1:]:
            out = ggml.ggml_add(context, out, view)
        out = ggml.ggml_cont(context, out) if top_k == 1 else out
        ggml.ggml_set_output(out)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, out)
        allocator = ggml.ggml_gallocr_new(self._plain)
        if not ggml.ggml_gallocr_alloc_graph(allocator, graph):
            raise MemoryError(f"{self.name}: the buffers of a step of {num_tokens} tokens were refused")
        return StepGraph(context, allocator, graph, x, ids, gates, out)

    def forward(self, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray) -> np.ndarray:
        check_step(x, expert_ids, gate_weights, self.num_experts, self.hidden_size)
        num_tokens, top_k = expert_ids.shape
        step = self._graphs.get((num_tokens, top_k))
        if step is None:
            step = self._graphs[num_tokens, top_k] = self._build(num_tokens, top_k)
        ggml = self._ggml
        inputs = (
            (step.x, np.ascontiguousarray(x)),
            (step.expert_ids, np.ascontiguousarray(expert_ids, np.int32)),
            (step.gate_weights, np.ascontiguousarray(gate_weights, np.float32)),
        )
        for tensor, array in inputs:
            ggml.ggml_backend_tensor_set(tensor, array.ctypes.data, 0, array.nbytes)
        status = ggml.ggml_backend_graph_compute(self._backend, step.graph)
        if status != ggml.GGML_STATUS_SUCCESS:
            raise RuntimeError(f"{self.name}: ggml_backend_graph_compute returned {status}, expected success")
        out = np.empty(x.shape, np.float32)
        ggml.ggml_backend_tensor_get(step.out, out.ctypes.data, 0, out.nbytes)
        return out

    def close(self) -> None:
        ggml = self._ggml
        for step in self._graphs.values():
            ggml.ggml_gallocr_free(step.allocator)
            ggml.ggml_free(step.context)
        for context, buffer, _ in self._weights:
            ggml.ggml_backend_buffer_free(buffer)
            ggml.ggml_free(context)
        if self._backend is not None:
            ggml.ggml_backend_free(self._backend)
        self._graphs, self._weights, self._backend = {}, [], None


class GgmlQ40Repacked(GgmlQ40):
    """The same bytes, rows interleaved."""

    name = "ggml Q4_0 repacked"
    repacked = True

    @staticmethod
    def available() -> str | None:
        return GgmlQ40Repacked._why_not()


class GgmlQ4K(GgmlQ40):
    """144 bytes per 256 weights (8 blocks of 6-bit scale and minimum): 4.5 bits a weight."""

    name = "ggml Q4_K plain"
    weight_type = "GGML_TYPE_Q4_K"


class GgmlQ4KRepacked(GgmlQ4K):
    """The same bytes, rows interleaved."""

    name = "ggml Q4_K repacked"
    repacked = True

    @staticmethod
    def available() -> str | None:
        return GgmlQ4KRepacked._why_not()
