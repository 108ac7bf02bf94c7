"""Ops: a list of operations that the native library runs in one call, all workers meeting after each.

A call of Python between two steps of memory-bound kernels costs more than most operations (docs/log.md, 2026-11-24, a
decode step as one native call), so a decode step is written down once and run as a whole. Operations read and write
float32 arrays of a ``StepMemory``: of one name there is one, whatever layer or list asks. Knows operations
(kernels/moelab_kernels.h says what each computes); does not know models. Floor 1.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from moelab.kernels.job import TILE_ROWS
from moelab.kernels.linear import PackedLinear, linear_job
from moelab.kernels.native import Forward, check_status, require_library, sized
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts
from moelab.kernels.scratch import aligned
from moelab.kernels.step_memory import StepMemory

KINDS = ("norm", "linear", "experts", "latent", "query", "attend", "merge", "gather", "route", "add")
_i32, _i64, _f32, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIZE = (("struct_bytes", ctypes.c_uint32), ("abi_version", ctypes.c_uint32))
_NOT_A_NUMBER = -5


class Norm(ctypes.Structure):
    """``moelab_norm``."""

    _fields_ = (
        *_SIZE,
        ("x", _pointer), ("x_stride", _i64), ("weight", _pointer), ("y", _pointer), ("y_stride", _i64),
        ("num_tokens", _i64), ("size", _i64), ("eps", _f32),
    )  # fmt: skip


class Attention(ctypes.Structure):
    """``moelab_attention``."""

    _fields_ = (
        *_SIZE,
        ("num_tokens", _i64), ("num_heads", _i64), ("kv_rank", _i64), ("nope_dim", _i64), ("rope_dim", _i64),
        ("a", _pointer), ("a_stride", _i64), ("kv_norm", _pointer), ("eps", _f32), ("softmax_scale", _f32),
        ("cos", _pointer), ("sin", _pointer), ("interleave", _i32), ("cache_bf16", _i32), ("cache", _pointer),
        ("row_numbers", _i64), ("row_of_token", _pointer), ("position_of_token", _pointer), ("q", _pointer),
        ("q_stride", _i64), ("query_nope", _pointer), ("query_rope", _pointer), ("query", _pointer),
        ("query_stride", _i64), ("partial", _pointer), ("max_chunks", _i64), ("mixed", _pointer),
        ("mixed_stride", _i64), ("attend", _pointer),
    )  # fmt: skip


class Gather(ctypes.Structure):
    """``moelab_gather``."""

    _fields_ = (
        *_SIZE,
        ("from_", _pointer), ("from_stride", _i64), ("num_tokens", _i64), ("num_matrices", _i64), ("size", _i64),
        ("to", _pointer),
    )  # fmt: skip


class Route(ctypes.Structure):
    """``moelab_route``."""

    _fields_ = (
        *_SIZE,
        ("logits", _pointer), ("logits_stride", _i64), ("bias", _pointer), ("num_tokens", _i64), ("num_experts", _i64),
        ("top_k", _i64), ("n_group", _i64), ("topk_group", _i64), ("normalise", _i32), ("scaling_factor", _f32),
        ("choice", _pointer), ("expert_ids", _pointer), ("gate_weights", _pointer), ("scores", _pointer),
        ("bad_token", _i64),
    )  # fmt: skip


class Add(ctypes.Structure):
    """``moelab_add``."""

    _fields_ = (
        *_SIZE,
        ("sum", _pointer), ("a", _pointer), ("a_stride", _i64), ("b", _pointer), ("num_tokens", _i64), ("size", _i64),
    )  # fmt: skip


class Op(ctypes.Structure):
    """``moelab_op``."""

    _fields_ = (*_SIZE, ("kind", _i64), ("arguments", _pointer), ("ns", ctypes.c_uint64))


class Ops:
    """Operations over ``num_tokens`` tokens. Methods append one each and return its output.

    ``arrays`` are float32 [rows, size] views with rows a stride apart. ``run(start, stop)`` runs a range of the list;
    ``seconds_of_kind`` says where the time went. Lists that share a ``memory`` never run at the same time. ``part`` is
    what the operations to come belong to, "layer 3": errors name it, and constants are shared by it and their name.
    Raises ``RuntimeError`` without the native library.
    """

    def __init__(self, num_tokens: int, isa: str, memory: StepMemory | None = None) -> None:
        self._library = require_library()
        self.num_tokens = num_tokens
        self.isa = isa
        self.memory = memory or StepMemory()
        self.part = ""
        self._ops: list[tuple[int, ctypes.Structure, str]] = []
        self._kept: list[Any] = []  # the structs hold addresses
        self._array: ctypes.Array[Op] | None = None
        self._failed_op = _i64()

    def __len__(self) -> int:
        return len(self._ops)

    # --- memory ---

    def array(self, name: str, rows: int, size: int) -> np.ndarray:
        """float32 [rows, size] at a multiple of 64 B; the same memory whenever the same name is asked for."""
        return self._bytes(name, 4 * rows * size).view(np.float32).reshape(rows, size)

    def _bytes(self, name: str, num_bytes: int) -> np.ndarray:
        block = self.memory.block(name, num_bytes)
        self._kept.append(block)
        return block

    def _own_bytes(self, num_bytes: int) -> np.ndarray:
        block = aligned(max(num_bytes, 1))
        self._kept.append(block)
        return block

    def own(self, values: Any, dtype: type = np.float32) -> np.ndarray:
        """A copy of this list alone, which stays where it is."""
        kept: np.ndarray = np.array(values, dtype, order="C")
        self._kept.append(kept)
        return kept

    def constant(self, name: str, values: Any) -> np.ndarray:
        """float32 copy of values that are the same in all lists."""
        return self.memory.constant(f"{self.part} {name}", values)

    def _append(self, kind: str, name: str, arguments: ctypes.Structure, *kept: Any) -> None:
        self._ops.append((KINDS.index(kind), arguments, f"{self.part} {name}".strip()))
        self._kept.append(kept)
        self._array = None

    # --- operations ---

    def norm(self, name: str, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        """RMSNorm of the rows of x."""
        weight = self.constant(name, weight)
        y = self.array(name, *x.shape)
        arguments = sized(
            Norm, x=x.ctypes.data, x_stride=_stride(x), weight=weight.ctypes.data, y=y.ctypes.data, y_stride=_stride(y),
            num_tokens=len(x), size=x.shape[1], eps=eps,
        )  # fmt: skip
        self._append("norm", name, arguments, x, weight, y)
        return y

    def linear(self, name: str, packed: PackedLinear, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        """x [rows, C] -> [rows, R]; with M matrices the rows come matrix by matrix."""
        count = packed.num_matrices or 1
        tokens_each = len(x) // count
        if x.shape != (count * tokens_each, packed.num_columns):
            raise ValueError(f"{name}: expected x [{count} x T, {packed.num_columns}]; got {list(x.shape)}")

        def buffer(part: str, size: int) -> np.ndarray:
            # The ids are written here, once, and depend on the number of tokens.
            return self._own_bytes(size) if part == "ids" else self._bytes(f"{name}.{part}", size)

        job, buffers, output = linear_job(packed, tokens_each, buffer)
        if bias is not None:
            padded = np.zeros(-(-len(bias) // TILE_ROWS) * TILE_ROWS, np.float32)
            padded[: len(bias)] = bias
            pointers = self.own([self.constant(f"{name} bias", padded).ctypes.data, 0, 0], np.int64)
            job[0]["expert_biases"] = pointers.ctypes.data
        forward = packed.forward_struct(job, buffers, x.ctypes.data, _stride(x), len(x))
        self._append("linear", name, forward, packed, job, x)
        return output[:, : packed.num_rows]

    def experts(
        self, name: str, routed: RoutedExperts, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray
    ) -> np.ndarray:
        """x [T, H], expert_ids int32 [T, K], gate_weights float32 [T, K], both as the run finds them -> [T, H]."""
        layout, shape = routed.layout, expert_ids.shape
        # By name: the lists of a step are made while the one before may still be read.
        scratch = self.memory.scratch(
            name, layout, routed.num_experts, routed.activation, routed.isa.isa, shape[0], shape[0] * shape[1]
        )
        y = self.array(name, *x.shape)
        pairs = self._bytes(f"{name}.pair_of_slot", 8 * expert_ids.size)
        forward = Forward.from_buffer_copy(routed.native_struct)
        forward.job = scratch.address
        forward.count_of_expert = scratch.count_of_expert.ctypes.data
        forward.x, forward.x_stride, forward.y = x.ctypes.data, _stride(x), y.ctypes.data
        forward.expert_ids, forward.gate_weights = expert_ids.ctypes.data, gate_weights.ctypes.data
        forward.pair_of_slot = pairs.ctypes.data
        forward.num_tokens, forward.top_k = shape
        self._append("experts", name, forward, routed, x, expert_ids, gate_weights)
        return y

    def attention(self, arguments: Attention, *kept: Any, part: str) -> None:
        """One of the four parts of an attention: latent, query, attend, merge."""
        self._append(part, part, arguments, *kept)

    def gather(self, name: str, rows: np.ndarray, num_matrices: int) -> np.ndarray:
        """[M * T, size] -> [T, M * size]."""
        tokens, size = len(rows) // num_matrices, rows.shape[1]
        to = self.array(name, tokens, num_matrices * size)
        arguments = sized(
            Gather, from_=rows.ctypes.data, from_stride=_stride(rows), num_tokens=tokens, num_matrices=num_matrices,
            size=size, to=to.ctypes.data,
        )  # fmt: skip
        self._append("gather", name, arguments, rows, to)
        return to

    def route(
        self, logits: np.ndarray, bias: np.ndarray, ids: np.ndarray, gates: np.ndarray, n_group: int, topk_group: int,
        normalise: bool, scaling_factor: float, scores: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """logits [T, E] -> into expert ids int32 [T, K] and gate weights float32 [T, K], in C order.

        ``scores``: float32 [T, E] in C order, gets the sigmoid of the logits, without bias.
        """
        tokens, num_experts = logits.shape
        bias = self.constant("router bias", bias)
        choice = self.array("choice", 1, num_experts)
        arguments = sized(
            Route, logits=logits.ctypes.data, logits_stride=_stride(logits), bias=bias.ctypes.data, num_tokens=tokens,
            num_experts=num_experts, top_k=ids.shape[1], n_group=n_group, topk_group=topk_group, normalise=normalise,
            scaling_factor=scaling_factor, choice=choice.ctypes.data, expert_ids=ids.ctypes.data,
            gate_weights=gates.ctypes.data, scores=None if scores is None else scores.ctypes.data,
        )  # fmt: skip
        self._append("route", "router", arguments, logits, ids, gates, scores)

    def add(self, total: np.ndarray, a: np.ndarray, b: np.ndarray | None = None) -> None:
        """total += a (+ b), in place."""
        arguments = sized(
            Add, sum=total.ctypes.data, a=a.ctypes.data, a_stride=_stride(a), b=None if b is None else b.ctypes.data,
            num_tokens=len(total), size=total.shape[1],
        )  # fmt: skip
        self._append("add", "sum", arguments, total, a, b)

    # --- running ---

    def run(self, pool: Pool | None, start: int = 0, stop: int | None = None) -> None:
        """Run the operations [start, stop) on a pool (``None``: on the caller alone).

        Raises ``FloatingPointError`` where a router's logits hold a NaN, ``ValueError`` where an operation is refused;
        both name it.
        """
        if self._array is None:
            rows = [sized(Op, kind=kind, arguments=ctypes.addressof(of)) for kind, of, _ in self._ops]
            self._array = (Op * len(rows))(*rows)
        count = (len(self._ops) if stop is None else stop) - start
        first = ctypes.addressof(self._array) + start * ctypes.sizeof(Op)
        function, failed = self._library.moelab_run_ops, self._failed_op
        status = function(None, first, count, failed) if pool is None else pool.call(function, first, count, failed)
        if status != 0:
            self._raise(status, start + failed.value)

    def _raise(self, status: int, failed_op: int) -> None:
        kind, arguments, where = self._ops[failed_op]
        if status == _NOT_A_NUMBER and isinstance(arguments, Route):
            raise FloatingPointError(
                f"{where}: expected numbers as logits; got NaN for row {arguments.bad_token} of the step: a weight or "
                "an activation before it is not finite, check the checkpoint"
            )
        check_status(status, f"{where} ({KINDS[kind]})")

    def seconds_of_kind(self) -> dict[str, float]:
        """Seconds by kind of operation since the list was made, the meetings of the workers included."""
        total = dict.fromkeys(KINDS, 0.0)
        for op in self._array if self._array is not None else ():
            total[KINDS[op.kind]] += op.ns / 1e9
        return total


def _stride(x: np.ndarray) -> int:
    """Numbers from one row to the next; rows themselves are contiguous."""
    if x.dtype != np.float32 or x.ndim != 2 or x.strides[1] != 4:
        raise ValueError(f"array of an operation: expected float32 rows; got {x.dtype}, strides {x.strides}")
    return int(x.strides[0] // 4)


def attend_address(isa: str, cache_bf16: bool) -> int:
    """Address of the attend function of an ISA. Raises ``ValueError`` where it has none."""
    address = require_library().moelab_attend(isa.encode(), cache_bf16)
    if not address:
        raise ValueError(f"attention: expected a native isa of this build; got {isa!r}: moelab doctor lists them")
    return int(address)


def attention_chunks(length: int) -> int:
    """Parts into which a context is cut: it depends on the length only, so that no result depends on the workers."""
    return int(require_library().moelab_attention_chunks(length))
