"""short_lanes: 32 numbers of 16 bits at once, for a policy that adds up and searches hundreds of scores a request.

Numba has no vectors of its own, and LLVM finds these loops in none of the ways to write them: it widens the products to
32 or 64 bits, and gathers where a maximum is asked for. So the few steps that matter are written as LLVM's own vector
instructions, which every CPU has in some width. An address is an integer; the caller answers for 64 bytes behind it (32
behind ``row``). Does not know what the numbers mean. Floor 1.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic  # its callers give one argument less than its functions take

LANES = 32

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _SHORTS = ir.VectorType(_I8, LANES), ir.VectorType(_I16, LANES)
_NUMBERS = ir.Constant(_SHORTS, [ir.Constant(_I16, lane) for lane in range(LANES)])


def _load(builder: Any, address: Any, kind: Any = _SHORTS) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, builder.inttoptr(address, _SHORTS.as_pointer()), align=1)


def _all(builder: Any, value: Any) -> Any:
    """The int64 ``value``, cut to 16 bits, in every lane."""
    lone = builder.insert_element(ir.Constant(_SHORTS, ir.Undefined), builder.trunc(value, _I16), _I32(0))
    return builder.shuffle_vector(lone, lone, ir.Constant(ir.VectorType(_I32, LANES), [_I32(0)] * LANES))


def _call(builder: Any, name: str, answer: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(answer, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _largest(builder: Any, lanes: Any) -> Any:
    return builder.zext(_call(builder, "llvm.vector.reduce.umax.v32i16", _I16, lanes), _I64)


@intrinsic
def ask_for_line(context, address):
    """Have the cache line at ``address`` brought in, without waiting for it."""

    def build(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I8.as_pointer())
        _call(builder, "llvm.prefetch.p0i8", ir.VoidType(), pointer, _I32(0), _I32(3), _I32(1))
        return context.get_dummy_value()

    return types.void(types.int64), build


@intrinsic
def add_products(context, lanes, row, factor, left, right):
    """Add ``row`` x ``factor`` << ``left`` >> ``right`` to the lanes: 32 bytes times 0 to 255."""

    def build(context, builder, signature, arguments):
        address, row, *numbers = arguments
        factor, left, right = (_all(builder, number) for number in numbers)
        products = builder.mul(builder.zext(_load(builder, row, _BYTES), _SHORTS), factor)
        added = builder.add(_load(builder, address), builder.lshr(builder.shl(products, left), right))
        _store(builder, address, added)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), build


@intrinsic
def largest(context, lanes):
    """The largest of the 32."""

    def build(context, builder, signature, arguments):
        return _largest(builder, _load(builder, arguments[0]))

    return types.int64(types.int64), build


@intrinsic
def place_of(context, lanes, value):
    """The first lane that holds ``value``; one must."""

    def build(context, builder, signature, arguments):
        is_equal = builder.icmp_unsigned("==", _load(builder, arguments[0]), _all(builder, arguments[1]))
        mask = builder.bitcast(is_equal, ir.IntType(LANES))
        return builder.zext(_call(builder, "llvm.cttz.i32", _I32, mask, ir.IntType(1)(0)), _I64)

    return types.int64(types.int64, types.int64), build


@intrinsic
def put(context, lanes, place, value):
    """Write one lane, and return the largest of the 32 then. The whole vector is stored: it is read again at once."""

    def build(context, builder, signature, arguments):
        address, place, value = arguments
        is_here = builder.icmp_unsigned("==", _NUMBERS, _all(builder, place))
        lanes = builder.select(is_here, _all(builder, value), _load(builder, address))
        _store(builder, address, lanes)
        return _largest(builder, lanes)

    return types.int64(types.int64, types.int64, types.int64), build
