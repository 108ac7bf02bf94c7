"""Read loops: they sum 64-bit words and do nothing else. The read limit is the best of them.

The loops differ in vector width, unrolling and order (one stream, or two and four streams that advance
together), so that one slow loop cannot flatter a kernel. Work is cut into blocks that the workers draw
from an atomic counter, as the kernels do. Floor 1.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types

from moelab.kernels.jit import ir as v
from moelab.kernels.jit.memory import fetch_add, intrinsic, pointer
from moelab.source_stamp import stamped

LOOP_NAMES = (
    "1 stream, 4 x 32 B",
    "1 stream, 16 x 32 B",
    "2 streams, 8 x 32 B",
    "4 streams, 4 x 32 B",
    "1 stream, 8 x 64 B",
)
# (streams, unroll, 64-bit words per vector) of each loop.
_SHAPES = ((1, 4, 4), (1, 16, 4), (2, 8, 4), (4, 4, 4), (1, 8, 8))
STEP_BYTES = 2048  # every loop reads whole multiples of this; a shorter rest is read by words


def _emit(builder, data, steps, streams, unroll, words):
    """Sum over ``steps * STEP_BYTES`` bytes from ``data``, cut into ``streams`` equal parts."""
    vector = ir.VectorType(v.I64, words)
    base = v.byte_pointer(builder, data)
    stride = builder.mul(steps, v.I64(STEP_BYTES // streams))
    round_bytes = unroll * words * 8
    rounds = builder.udiv(stride, v.I64(round_bytes))
    starts = [v.at(builder, base, builder.mul(stride, v.I64(s))) for s in range(streams)]
    loop = v.TileLoop(builder, rounds, [v.constant(vector, 0)] * (streams * unroll))
    sums = list(loop.carried)
    at = builder.mul(loop.k, v.I64(round_bytes))
    for s in range(streams):
        here = v.at(builder, starts[s], at)
        for u in range(unroll):
            i = s * unroll + u
            sums[i] = builder.add(sums[i], v.load(builder, here, u * words * 8, vector, 32))
    loop.close(sums)
    while len(sums) > 1:
        sums = [builder.add(a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
    total = v.I64(0)
    for i in range(words):
        total = builder.add(total, builder.extract_element(sums[0], v.I32(i)))
    return total


def _loop(number):
    streams, unroll, words = _SHAPES[number]

    def codegen(context, builder, signature, args):
        return _emit(builder, args[0], args[1], streams, unroll, words)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _read_0(typingctx, data, steps):
    return _loop(0)


@intrinsic
def _read_1(typingctx, data, steps):
    return _loop(1)


@intrinsic
def _read_2(typingctx, data, steps):
    return _loop(2)


@intrinsic
def _read_3(typingctx, data, steps):
    return _loop(3)


@intrinsic
def _read_4(typingctx, data, steps):
    return _loop(4)


@njit(nogil=True, cache=True)
@stamped
def read(loop, address, num_bytes):
    """Sum (mod 2**64) of the int64 words of ``[address, address + num_bytes)``, num_bytes a multiple of 8."""
    steps = num_bytes // STEP_BYTES
    total = 0
    if steps > 0:
        if loop == 0:
            total = _read_0(address, steps)
        elif loop == 1:
            total = _read_1(address, steps)
        elif loop == 2:
            total = _read_2(address, steps)
        elif loop == 3:
            total = _read_3(address, steps)
        else:
            total = _read_4(address, steps)
    rest = carray(pointer(address + steps * STEP_BYTES), (num_bytes - steps * STEP_BYTES) // 8, np.int64)
    for i in range(rest.shape[0]):
        total += rest[i]
    return total


@njit(nogil=True, cache=True)
@stamped
def read_shared(loop, addresses, num_bytes, block_bytes, counter_address):
    """Read ``num_bytes`` at each address, in blocks that this worker draws from an atomic counter."""
    blocks = (num_bytes + block_bytes - 1) // block_bytes
    total = 0
    block = fetch_add(counter_address, 1)
    while block < blocks * addresses.shape[0]:
        number = block // blocks
        start = (block - number * blocks) * block_bytes
        total += read(loop, addresses[number] + start, min(block_bytes, num_bytes - start))
        block = fetch_add(counter_address, 1)
    return total
