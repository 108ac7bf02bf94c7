"""float32 weights x float32 activations: FMA over columns, even and odd columns in two chains.

One tile is read once for up to 4 tokens. Floor 1.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import carray, njit, types

from moelab.kernels.jit import ir as v
from moelab.kernels.jit.memory import fetch_add, intrinsic, pointer, record_at, stack_1k
from moelab.kernels.jit.quantise import quantise_float, silu
from moelab.source_stamp import stamped

TILE_BYTES = 4096


def _emit(context, builder, weights, q, stride, rows, num_tiles, out):
    """out [len(rows), 16] = one row of tiles x the activation rows ``rows``; even and odd columns apart."""
    weights, out = v.byte_pointer(builder, weights), v.byte_pointer(builder, out)
    q_rows = [v.byte_pointer(builder, builder.add(q, builder.mul(row, builder.shl(stride, v.I64(2))))) for row in rows]
    loop = v.TileLoop(builder, num_tiles, [v.constant(v.V8F, 0.0)] * (4 * len(rows)))
    sums = list(loop.carried)
    tile = v.at(builder, weights, builder.mul(loop.k, v.I64(TILE_BYTES)))
    q_tiles = [v.at(builder, row, builder.shl(loop.k, v.I64(8))) for row in q_rows]
    for column in range(64):
        halves = [v.load(builder, tile, column * 64 + half * 32, v.V8F, 32) for half in range(2)]
        for m in range(len(rows)):
            a = v.broadcast(builder, v.load(builder, q_tiles[m], column * 4, v.F32, 4), 8)
            for half in range(2):
                i = 4 * m + 2 * half + column % 2
                sums[i] = v.multiply_add(context, builder, halves[half], a, sums[i])
    loop.close(sums)
    for i in range(2 * len(rows)):
        v.store(builder, builder.fadd(sums[2 * i], sums[2 * i + 1]), out, i * 32, 32)


@intrinsic
def dot_1(typingctx, weights, q, stride, row0, num_tiles, out):
    def codegen(context, builder, signature, args):
        weights, q, stride, row0, num_tiles, out = args
        _emit(context, builder, weights, q, stride, [row0], num_tiles, out)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic
def dot_4(typingctx, weights, q, stride, row0, row1, row2, row3, num_tiles, out):
    def codegen(context, builder, signature, args):
        weights, q, stride, row0, row1, row2, row3, num_tiles, out = args
        _emit(context, builder, weights, q, stride, [row0, row1, row2, row3], num_tiles, out)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


@njit(nogil=True, cache=True)
@stamped
def quantise_tokens(job_address, x, row_start, row_stop):
    """Rows of ``x`` float32 [T, H] -> tokens_q of the job."""
    job = record_at(job_address)
    padded = (job.hidden_size + 63) // 64 * 64
    for row in range(row_start, row_stop):
        quantise_float(x, row, padded, job.tokens_q, False)


@njit(nogil=True, cache=True)
@stamped
def gate_up(job_address, unit_start, unit_stop):
    """Units of 32 intermediate rows (see the header): writes hidden_q.

    Returns the bytes of weights read.
    """
    job = record_at(job_address)
    size = job.intermediate_size
    num_tiles = (job.hidden_size + 63) // 64
    num_tile_rows = (size + 15) // 16
    num_units = (size + 31) // 32
    padded = (size + 63) // 64 * 64
    row_bytes = num_tiles * TILE_BYTES
    stride = num_tiles * 64
    weights_of_expert = carray(pointer(job.expert_weights), job.num_experts, np.int64)
    pair_start = carray(pointer(job.pair_start), job.num_experts + 1, np.int64)
    token_of_pair = carray(pointer(job.token_of_pair), job.num_pairs, np.int32)
    dots_address = stack_1k()  # [gate_proj, up_proj] x [2 tile rows] x [4 tokens] x [16 rows]
    dots = carray(pointer(dots_address), 256, np.float32)
    hidden_address = stack_1k()
    hidden = carray(pointer(hidden_address), 32, np.float32)
    q = job.tokens_q
    bytes_read = 0
    for unit in range(unit_start, unit_stop):
        expert = unit // num_units
        group = unit - expert * num_units
        tile_rows = min(2, num_tile_rows - 2 * group)
        gate_weights = weights_of_expert[expert] + 2 * group * row_bytes
        bytes_read += 2 * tile_rows * row_bytes
        pair, last = pair_start[expert], pair_start[expert + 1]
        while pair < last:
            count = 4 if pair + 4 <= last else 1
            a = np.int64(token_of_pair[pair])
            b, c, d = np.int64(token_of_pair[pair + count // 4]), a, a
            if count == 4:
                c, d = np.int64(token_of_pair[pair + 2]), np.int64(token_of_pair[pair + 3])
            for s in range(2 * tile_rows):
                projection, n = s // tile_rows, s % tile_rows
                weights = gate_weights + (projection * num_tile_rows + n) * row_bytes
                to = dots_address + (projection * 2 + n) * 256
                if count == 4:
                    dot_4(weights, q, stride, a, b, c, d, num_tiles, to)
                else:
                    dot_1(weights, q, stride, a, num_tiles, to)
            for m in range(count):
                for n in range(tile_rows):
                    for r in range(16):
                        at = n * 64 + m * 16 + r
                        hidden[n * 16 + r] = silu(dots[at]) * dots[128 + at]
                stop = padded if group == num_units - 1 else group * 32 + 32
                row = carray(pointer(job.hidden_q + (pair + m) * padded * 4), padded, np.float32)
                for i in range(stop - group * 32):
                    row[group * 32 + i] = hidden[i] if i < size - group * 32 else np.float32(0.0)
            pair += count
    return bytes_read


@njit(nogil=True, cache=True)
@stamped
def down(job_address, unit_start, unit_stop):
    """Units of 16 output rows: writes ``output``. Returns the bytes of weights read."""
    job = record_at(job_address)
    num_tiles = (job.intermediate_size + 63) // 64
    num_units = (job.hidden_size + 15) // 16
    row_bytes = num_tiles * TILE_BYTES
    up_bytes = (job.intermediate_size + 15) // 16 * ((job.hidden_size + 63) // 64) * TILE_BYTES
    stride = num_tiles * 64
    weights_of_expert = carray(pointer(job.expert_weights), job.num_experts, np.int64)
    pair_start = carray(pointer(job.pair_start), job.num_experts + 1, np.int64)
    out_address = stack_1k()
    out = carray(pointer(out_address), 64, np.float32)
    q = job.hidden_q
    bytes_read = 0
    for unit in range(unit_start, unit_stop):
        expert = unit // num_units
        n = unit - expert * num_units
        weights = weights_of_expert[expert] + 2 * up_bytes + n * row_bytes
        bytes_read += row_bytes
        pair, last = pair_start[expert], pair_start[expert + 1]
        while pair < last:
            if pair + 4 <= last:
                dot_4(weights, q, stride, pair, pair + 1, pair + 2, pair + 3, num_tiles, out_address)
                for m in range(4):
                    output = carray(pointer(job.output + ((pair + m) * num_units + n) * 64), 16, np.float32)
                    for r in range(16):
                        output[r] = out[m * 16 + r]
                pair += 4
            else:
                dot_1(weights, q, stride, pair, num_tiles, job.output + (pair * num_units + n) * 64)
                pair += 1
    return bytes_read


@njit(nogil=True, cache=True)
@stamped
def gate_up_shared(job_address, counter_address, chunk, num_units):
    """``gate_up`` of the chunks that this worker draws from an atomic counter. Returns bytes read."""
    bytes_read = 0
    start = fetch_add(counter_address, chunk)
    while start < num_units:
        bytes_read += gate_up(job_address, start, min(start + chunk, num_units))
        start = fetch_add(counter_address, chunk)
    return bytes_read


@njit(nogil=True, cache=True)
@stamped
def down_shared(job_address, counter_address, chunk, num_units):
    """``down`` of the chunks that this worker draws from an atomic counter. Returns bytes read."""
    bytes_read = 0
    start = fetch_add(counter_address, chunk)
    while start < num_units:
        bytes_read += down(job_address, start, min(start + chunk, num_units))
        start = fetch_add(counter_address, chunk)
    return bytes_read
