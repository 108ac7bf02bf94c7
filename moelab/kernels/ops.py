"""Ops: a list of operations that the native library runs in one call, all workers meeting after each.

A call of Python between two steps of memory-bound kernels costs more than most operations (docs/log.md), so a decode
step is written down once and run as a whole. Operations read and write float32 arrays that this object makes and
keeps: of one name and size there is one, whatever layer asks. Knows operations and buffers (kernels/moelab_kernels.h
says what each computes); does not know models. Floor 1.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from moelab.kernels.job import TILE_ROWS
from moelab.kernels.linear import PackedLinear, linear_job
from moelab.kernels.native import Forward, check_status, require_library
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts
from moelab.kernels.scratch import Scratch, aligned

KINDS = ("norm", "linear", "experts", "latent", "query", "attend", "merge", "gather", "route", "add")
_i32, _i64, _f32, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Norm(ctypes.Structure):
    """``moelab_norm``."""

    _fields_ = (
        ("x", _pointer), ("x_stride", _i64), ("weight", _pointer), ("y", _pointer), ("y_stride", _i64),
        ("num_tokens", _i64), ("size", _i64), ("eps", _f32),
    )  # fmt: skip


class Attention(ctypes.Structure):
    """``moelab_attention``."""

    _fields_ = (
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
        ("from_", _pointer), ("from_stride", _i64), ("num_tokens", _i64), ("num_matrices", _i64), ("size", _i64),
        ("to", _pointer),
    )  # fmt: skip


class Route(ctypes.Structure):
    """``moelab_route``."""

    _fields_ = (
        ("logits", _pointer), ("logits_stride", _i64), ("bias", _pointer), ("num_tokens", _i64), ("num_experts", _i64),
        ("top_k", _i64), ("n_group", _i64), ("topk_group", _i64), ("normalise", _i32), ("scaling_factor", _f32),
        ("choice", _pointer), ("expert_ids", _pointer), ("gate_weights", _pointer),
    )  # fmt: skip


class Add(ctypes.Structure):
    """``moelab_add``."""

    _fields_ = (
        ("sum", _pointer), ("a", _pointer), ("a_stride", _i64), ("b", _pointer), ("num_tokens", _i64), ("size", _i64),
    )  # fmt: skip


class Op(ctypes.Structure):
    """``moelab_op``."""

    _fields_ = (("kind", _i64), ("arguments", _pointer), ("ns", ctypes.c_uint64))


class Ops:
    """Operations over ``num_tokens`` tokens. Methods append one each and return its output.

    ``arrays`` are float32 [rows, size] views with rows a stride apart. ``run(start, stop)`` runs a range of the list;
    ``seconds_of_kind`` says where the time went. Raises ``RuntimeError`` without the native library.
    """

    def __init__(self, num_tokens: int, isa: str) -> None:
        self._library = require_library()
        self.num_tokens = num_tokens
        self.isa = isa
        self._ops: list[tuple[int, ctypes.Structure]] = []
        self._kept: list[Any] = []  # the structs hold addresses
        self._memory: dict[tuple[Any, ...], Any] = {}
        self._array: ctypes.Array[Op] | None = None

    def __len__(self) -> int:
        return len(self._ops)

    # --- memory ---

    def array(self, name: str, rows: int, size: int) -> np.ndarray:
        """float32 [rows, size] at a multiple of 64 B; the same one whenever the same is asked for."""
        return self._bytes(name, 4 * rows * size).view(np.float32).reshape(rows, size)

    def _bytes(self, name: str, num_bytes: int) -> np.ndarray:
        key = (name, num_bytes)
        if key not in self._memory:
            self._memory[key] = aligned(max(num_bytes, 1))
        block: np.ndarray = self._memory[key]
        return block

    def constant(self, values: Any, dtype: type = np.float32) -> np.ndarray:
        """A copy that stays where it is."""
        kept: np.ndarray = np.array(values, dtype, order="C")
        self._kept.append(kept)
        return kept

    def _append(self, kind: str, arguments: ctypes.Structure, *kept: Any) -> None:
        self._ops.append((KINDS.index(kind), arguments))
        self._kept.append(kept)
        self._array = None

    # --- operations ---

    def norm(self, name: str, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        """RMSNorm of the rows of x."""
        weight = self.constant(weight)
        y = self.array(name, *x.shape)
        arguments = Norm(
            x=x.ctypes.data, x_stride=_stride(x), weight=weight.ctypes.data, y=y.ctypes.data, y_stride=_stride(y),
            num_tokens=len(x), size=x.shape[1], eps=eps,
        )  # fmt: skip
        self._append("norm", arguments, x, weight, y)
        return y

    def linear(self, name: str, packed: PackedLinear, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        """x [rows, C] -> [rows, R]; with M matrices the rows come matrix by matrix."""
        count = packed.num_matrices or 1
        tokens_each = len(x) // count
        if x.shape != (count * tokens_each, packed.num_columns):
            raise ValueError(f"{name}: expected x [{count} x T, {packed.num_columns}]; got {list(x.shape)}")
        job, buffers, output = linear_job(packed, tokens_each, lambda part, size: self._bytes(f"{name}.{part}", size))
        if bias is not None:
            padded = np.zeros(-(-len(bias) // TILE_ROWS) * TILE_ROWS, np.float32)
            padded[: len(bias)] = bias
            pointers = self.constant([self.constant(padded).ctypes.data, 0, 0], np.int64)
            job[0]["expert_biases"] = pointers.ctypes.data
        forward = packed.forward_struct(job, buffers, x.ctypes.data, _stride(x), len(x))
        self._append("linear", forward, packed, job, x)
        return output[:, : packed.num_rows]

    def experts(
        self, name: str, routed: RoutedExperts, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray
    ) -> np.ndarray:
        """x [T, H], expert_ids int32 [T, K], gate_weights float32 [T, K], both as the run finds them -> [T, H]."""
        layout, shape = routed.layout, expert_ids.shape
        # By name: the lists of a step are made while the one before may still be read.
        key = ("scratch", name, layout, routed.num_experts, routed.activation)
        if key not in self._memory:
            self._memory[key] = Scratch(layout, routed.num_experts, routed.activation, "native")
            self._memory[key].reserve(shape[0], shape[0] * shape[1])
        scratch: Scratch = self._memory[key]
        y = self.array(name, *x.shape)
        pairs = self._bytes(f"{name}.pair_of_slot", 8 * expert_ids.size)
        forward = Forward.from_buffer_copy(routed.native_struct)
        forward.job = scratch.address
        forward.count_of_expert = scratch.count_of_expert.ctypes.data
        forward.x, forward.x_stride, forward.y = x.ctypes.data, _stride(x), y.ctypes.data
        forward.expert_ids, forward.gate_weights = expert_ids.ctypes.data, gate_weights.ctypes.data
        forward.pair_of_slot = pairs.ctypes.data
        forward.num_tokens, forward.top_k = shape
        self._append("experts", forward, routed, x, expert_ids, gate_weights)
        return y

    def attention(self, arguments: Attention, *kept: Any, part: str) -> None:
        """One of the four parts of an attention: latent, query, attend, merge."""
        self._append(part, arguments, *kept)

    def gather(self, name: str, rows: np.ndarray, num_matrices: int) -> np.ndarray:
        """[M * T, size] -> [T, M * size]."""
        tokens, size = len(rows) // num_matrices, rows.shape[1]
        to = self.array(name, tokens, num_matrices * size)
        arguments = Gather(
            from_=rows.ctypes.data, from_stride=_stride(rows), num_tokens=tokens, num_matrices=num_matrices, size=size,
            to=to.ctypes.data,
        )  # fmt: skip
        self._append("gather", arguments, rows, to)
        return to

    def route(
        self, logits: np.ndarray, bias: np.ndarray, ids: np.ndarray, gates: np.ndarray, n_group: int, topk_group: int,
        normalise: bool, scaling_factor: float,
    ) -> None:  # fmt: skip
        """logits [T, E] -> into expert ids int32 [T, K] and gate weights float32 [T, K], in C order."""
        tokens, num_experts = logits.shape
        bias = self.constant(bias)
        choice = self.array("choice", 1, num_experts)
        arguments = Route(
            logits=logits.ctypes.data, logits_stride=_stride(logits), bias=bias.ctypes.data, num_tokens=tokens,
            num_experts=num_experts, top_k=ids.shape[1], n_group=n_group, topk_group=topk_group, normalise=normalise,
            scaling_factor=scaling_factor, choice=choice.ctypes.data, expert_ids=ids.ctypes.data,
            gate_weights=gates.ctypes.data,
        )  # fmt: skip
        self._append("route", arguments, logits, ids, gates)

    def add(self, total: np.ndarray, a: np.ndarray, b: np.ndarray | None = None) -> None:
        """total += a (+ b), in place."""
        arguments = Add(
            sum=total.ctypes.data, a=a.ctypes.data, a_stride=_stride(a), b=None if b is None else b.ctypes.data,
            num_tokens=len(total), size=total.shape[1],
        )  # fmt: skip
        self._append("add", arguments, total, a, b)

    # --- running ---

    def run(self, pool: Pool | None, start: int = 0, stop: int | None = None) -> None:
        """Run the operations [start, stop) on a pool (``None``: on the caller alone)."""
        if self._array is None:
            rows = [Op(kind, ctypes.addressof(arguments), 0) for kind, arguments in self._ops]
            self._array = (Op * len(rows))(*rows)
        count = (len(self._ops) if stop is None else stop) - start
        first = ctypes.addressof(self._array) + start * ctypes.sizeof(Op)
        function = self._library.moelab_run_ops
        status = function(None, first, count) if pool is None else pool.call(function, first, count)
        if status != 0:
            check_status(status, "decode step")

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
