"""Addresses inside compiled code: int64 -> array, bit casts, stack buffers, an atomic counter.

Does not check bounds and does not own memory. Floor 1: Numba and llvmlite.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.np.numpy_support import from_dtype

from moelab.kernels.job import MOE_JOB
from moelab.source_stamp import stamped

JOB = from_dtype(MOE_JOB)
BYTE = ir.IntType(8)
intrinsic: Any = numba_intrinsic  # its own type describes the definition, not the call


@intrinsic
def record_at(typingctx, address):
    """The ``MOE_JOB`` record at an address, as a reference (no copy)."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(JOB))

    return JOB(types.int64), codegen


@intrinsic
def pointer(typingctx, address):
    """int64 -> void pointer, for ``numba.carray``."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def float_bits(typingctx, value):
    """Bits of a float32 as int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def bits_float(typingctx, bits):
    """int32 -> the float32 with these bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def stack_1k(typingctx):
    """Address of 1 KiB of stack, 64-byte aligned, alive until the calling function returns."""

    def codegen(context, builder, signature, args):
        with builder.goto_entry_block():
            block = builder.alloca(ir.ArrayType(BYTE, 1024))
            block.align = 64
        return builder.ptrtoint(block, ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def fetch_add(typingctx, address, value):
    """Atomic ``old = *address; *address += value; return old`` on an int64."""

    def codegen(context, builder, signature, args):
        target = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", target, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@njit(nogil=True, cache=True)
@stamped
def zero_bytes(data, start, stop):
    """Clear ``data[start:stop]``."""
    for i in range(start, stop):
        data[i] = 0
