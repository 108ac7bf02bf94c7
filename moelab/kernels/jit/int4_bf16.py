"""int4_g32 weights x bf16 activations: float32 FMA, the weights exact.

A nibble is not shifted down but masked where it stands and converted to float32, n * 2**bit, exactly;
the activation is stored as a * 2**-bit (a rounded to bf16), so the product is n * a. The + 8 of the
nibbles comes back as -8 * sum(a) per group (``offset``, float32), where the sum of the group starts.
Even and odd columns are two chains; then acc += sum * weight_scale. One tile is decoded once for up to
4 tokens. Floor 1.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import carray, njit, types

from moelab.kernels.jit import ir as v
from moelab.kernels.jit.memory import fetch_add, intrinsic, pointer, record_at, stack_1k
from moelab.kernels.jit.quantise import round_bf16, silu
from moelab.source_stamp import stamped

TILE_BYTES = 576


# Bit where the nibble of column i of 8 starts; the last is shifted down by 4 to stay positive.
BIT_OF_COLUMN = (0, 8, 16, 24, 4, 12, 20, 24)
SCALE_OF_COLUMN = np.array([2.0**-bit for bit in BIT_OF_COLUMN], np.float32)


def _emit(context, builder, weights, q, offset, stride, rows, num_tiles, out):
    """out [len(rows), 16] = one row of tiles x the activation rows ``rows`` (see module docstring)."""
    weights, out = v.byte_pointer(builder, weights), v.byte_pointer(builder, out)
    q_rows = [v.byte_pointer(builder, builder.add(q, builder.mul(row, builder.shl(stride, v.I64(2))))) for row in rows]
    quarter = builder.lshr(stride, v.I64(3))  # bytes of offsets per row: stride / 32 groups * 4
    offset_rows = [v.byte_pointer(builder, builder.add(offset, builder.mul(row, quarter))) for row in rows]
    zero = v.constant(v.V8F, 0.0)
    loop = v.TileLoop(builder, num_tiles, [zero] * (2 * len(rows)))
    sums = list(loop.carried)
    tile = v.at(builder, weights, builder.mul(loop.k, v.I64(TILE_BYTES)))
    q_tiles = [v.at(builder, row, builder.shl(loop.k, v.I64(8))) for row in q_rows]
    offset_tiles = [v.at(builder, row, builder.shl(loop.k, v.I64(3))) for row in offset_rows]
    for group in range(2):
        starts = [v.broadcast(builder, v.load(builder, row, group * 4, v.F32, 4), 8) for row in offset_tiles]
        even = [[start, start] for start in starts]  # [token][half]
        odd = [[zero, zero] for _ in rows]
        for line in range(group * 4, group * 4 + 4):
            words = [v.load(builder, tile, line * 64 + half * 32, v.V8I, 32) for half in range(2)]
            last = [builder.lshr(word, v.constant(v.V8I, 4)) for word in words]
            for column, bit in enumerate(BIT_OF_COLUMN):
                mask = v.constant(v.V8I, 15 << bit)
                source = last if column == 7 else words
                nibbles = [builder.sitofp(builder.and_(word, mask), v.V8F) for word in source]
                for m in range(len(rows)):
                    a = v.broadcast(builder, v.load(builder, q_tiles[m], (line * 8 + column) * 4, v.F32, 4), 8)
                    chain = odd[m] if column % 2 else even[m]
                    for half in range(2):
                        chain[half] = v.multiply_add(context, builder, nibbles[half], a, chain[half])
        for half in range(2):
            weight_scale = v.load_bf16_scales(builder, tile, 512 + group * 32 + half * 16)
            for m in range(len(rows)):
                total = builder.fadd(even[m][half], odd[m][half])
                sums[2 * m + half] = v.multiply_add(context, builder, total, weight_scale, sums[2 * m + half])
    loop.close(sums)
    for i, value in enumerate(sums):
        v.store(builder, value, out, i * 32, 32)


@intrinsic
def dot_1(typingctx, weights, q, offset, stride, row0, num_tiles, out):
    def codegen(context, builder, signature, args):
        weights, q, offset, stride, row0, num_tiles, out = args
        _emit(context, builder, weights, q, offset, stride, [row0], num_tiles, out)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@intrinsic
def dot_4(typingctx, weights, q, offset, stride, row0, row1, row2, row3, num_tiles, out):
    def codegen(context, builder, signature, args):
        weights, q, offset, stride, row0, row1, row2, row3, num_tiles, out = args
        _emit(context, builder, weights, q, offset, stride, [row0, row1, row2, row3], num_tiles, out)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), codegen


@njit(nogil=True, cache=True)
@stamped
def scale_group(x, first, count, q_address, offset_address):
    """One group of 32: ``count`` numbers ``x[first:]`` as round_bf16(x) * 2**-bit; offset = -8 * sum."""
    q = carray(pointer(q_address), 32, np.float32)
    offset = carray(pointer(offset_address), 1, np.float32)
    total = np.float32(0.0)
    for c in range(count):
        a = round_bf16(x[first + c])
        total += a
        q[c] = a * SCALE_OF_COLUMN[c & 7]
    for c in range(count, 32):
        q[c] = np.float32(0.0)
    offset[0] = np.float32(-8.0) * total


@njit(nogil=True, cache=True)
@stamped
def quantise_tokens(job_address, x, row_start, row_stop):
    """Rows of ``x`` float32 [T, H] -> tokens_q (as ``scale_group``) and tokens_offset of the job."""
    job = record_at(job_address)
    padded = (job.hidden_size + 63) // 64 * 64
    for row in range(row_start, row_stop):
        for g in range(padded // 32):
            count = min(max(job.hidden_size - g * 32, 0), 32)
            to = row * (padded // 32) + g
            scale_group(x[row], g * 32, count, job.tokens_q + to * 128, job.tokens_offset + to * 4)


@njit(nogil=True, cache=True)
@stamped
def gate_up(job_address, unit_start, unit_stop):
    """Units of 32 intermediate rows (see the header): writes hidden_q, hidden_offset.

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
    q, offset = job.tokens_q, job.tokens_offset
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
                    dot_4(weights, q, offset, stride, a, b, c, d, num_tiles, to)
                else:
                    dot_1(weights, q, offset, stride, a, num_tiles, to)
            for m in range(count):
                for n in range(tile_rows):
                    for r in range(16):
                        at = n * 64 + m * 16 + r
                        hidden[n * 16 + r] = silu(dots[at]) * dots[128 + at]
                columns = min(32, size - group * 32)
                last_group = padded // 32 if group == num_units - 1 else group + 1
                for g in range(group, last_group):
                    to = (pair + m) * (padded // 32) + g
                    scale_group(
                        hidden, 0, columns if g == group else 0, job.hidden_q + to * 128, job.hidden_offset + to * 4
                    )
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
    q, offset = job.hidden_q, job.hidden_offset
    bytes_read = 0
    for unit in range(unit_start, unit_stop):
        expert = unit // num_units
        n = unit - expert * num_units
        weights = weights_of_expert[expert] + 2 * up_bytes + n * row_bytes
        bytes_read += row_bytes
        pair, last = pair_start[expert], pair_start[expert + 1]
        while pair < last:
            if pair + 4 <= last:
                dot_4(weights, q, offset, stride, pair, pair + 1, pair + 2, pair + 3, num_tiles, out_address)
                for m in range(4):
                    output = carray(pointer(job.output + ((pair + m) * num_units + n) * 64), 16, np.float32)
                    for r in range(16):
                        output[r] = out[m * 16 + r]
                pair += 4
            else:
                dot_1(weights, q, offset, stride, pair, num_tiles, job.output + (pair * num_units + n) * 64)
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
