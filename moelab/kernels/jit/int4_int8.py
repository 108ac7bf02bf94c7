"""int4_g32 weights x int8 activations: exact integer sums per group, float32 across groups.

Per 8 rows and group, 8 quads of unsigned nibbles times signed bytes: pairs of products (at most
2 * 15 * 127) are added in int16 over the 8 quads (at most 30,480: it cannot overflow), the two halves of
a row in int32, and the offset -8 * sum(q) takes back the + 8 of the nibbles. Then
acc += (float(isum) * activation_scale) * weight_scale, groups in rising order, never contracted.
With several tokens one tile is decoded once for 4 of them. With one token four rows of tiles that lie far
apart are read side by side: four streams keep more reads under way than one, and they share the
broadcast activations. Floor 1.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import carray, njit, types

from moelab.kernels.jit import ir as v
from moelab.kernels.jit.memory import fetch_add, intrinsic, pointer, record_at, stack_1k
from moelab.kernels.jit.quantise import quantise_group, quantise_int8, silu
from moelab.source_stamp import stamped

TILE_BYTES = 576


def _nibbles(builder, tile, offset):
    """8 rows of one line: the quads of columns 0..3 and of columns 4..7 as unsigned bytes."""
    mask = v.constant(v.V32B, 15)
    block = v.load(builder, tile, offset, v.V32B, 32)
    shifted = builder.lshr(builder.bitcast(block, v.V16H), v.constant(v.V16H, 4))
    return builder.and_(block, mask), builder.and_(builder.bitcast(shifted, v.V32B), mask)


def _emit(context, builder, streams, q, scale, offset, stride, rows, num_tiles, outs):
    """outs[w] [len(rows), 16] = the row of tiles at streams[w] x the activation rows ``rows``."""
    streams = [v.byte_pointer(builder, address) for address in streams]
    outs = [v.byte_pointer(builder, address) for address in outs]
    quarter = builder.lshr(stride, v.I64(3))  # bytes of scales per row: stride / 32 groups * 4
    q_rows = [v.byte_pointer(builder, builder.add(q, builder.mul(row, stride))) for row in rows]
    scale_rows = [v.byte_pointer(builder, builder.add(scale, builder.mul(row, quarter))) for row in rows]
    offset_rows = [v.byte_pointer(builder, builder.add(offset, builder.mul(row, quarter))) for row in rows]
    loop = v.TileLoop(builder, num_tiles, [v.constant(v.V8F, 0.0)] * (2 * len(rows) * len(streams)))
    sums = list(loop.carried)
    tile_start = builder.mul(loop.k, v.I64(TILE_BYTES))
    tiles = [v.at(builder, stream, tile_start) for stream in streams]
    q_tiles = [v.at(builder, row, builder.shl(loop.k, v.I64(6))) for row in q_rows]
    scale_tiles = [v.at(builder, row, builder.shl(loop.k, v.I64(3))) for row in scale_rows]
    offset_tiles = [v.at(builder, row, builder.shl(loop.k, v.I64(3))) for row in offset_rows]
    blocks = [(w, half) for w in range(len(streams)) for half in range(2)]
    for group in range(2):
        pairs: dict = {}  # int16 sums by token, stream and half of the 16 rows
        for line in range(4):
            start = (group * 4 + line) * 64
            quads = {(w, half): _nibbles(builder, tiles[w], start + half * 32) for w, half in blocks}
            for m in range(len(rows)):
                for side in range(2):
                    word = v.load(builder, q_tiles[m], group * 32 + line * 8 + side * 4, v.I32, 4)
                    activations = builder.bitcast(v.broadcast(builder, word, 8), v.V32B)
                    for block in blocks:
                        products = v.multiply_add_bytes(context, builder, quads[block][side], activations)
                        before = pairs.get((m, block))
                        pairs[m, block] = products if before is None else builder.add(before, products)
        for m in range(len(rows)):
            start = v.broadcast(builder, v.load(builder, offset_tiles[m], group * 4, v.I32, 4), 8)
            activation_scale = v.broadcast(builder, v.load(builder, scale_tiles[m], group * 4, v.F32, 4), 8)
            for w, half in blocks:
                weight_scale = v.load_bf16_scales(builder, tiles[w], 512 + group * 32 + half * 16)
                isum = builder.add(v.add_pairs(context, builder, pairs[m, (w, half)]), start)
                scaled = builder.fmul(builder.sitofp(isum, v.V8F), activation_scale)
                i = (w * len(rows) + m) * 2 + half
                sums[i] = builder.fadd(sums[i], builder.fmul(scaled, weight_scale))
    loop.close(sums)
    for i, value in enumerate(sums):  # the values of the last iteration
        v.store(builder, value, outs[i // (2 * len(rows))], i % (2 * len(rows)) * 32, 32)


@intrinsic
def dot_1(typingctx, weights, q, scale, offset, stride, row0, num_tiles, out):
    def codegen(context, builder, signature, args):
        weights, q, scale, offset, stride, row0, num_tiles, out = args
        _emit(context, builder, [weights], q, scale, offset, stride, [row0], num_tiles, [out])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), codegen


@intrinsic
def dot_1_of_2(typingctx, w0, w1, q, scale, offset, stride, row0, num_tiles, out0, out1):
    """Two rows of tiles, one token."""

    def codegen(context, builder, signature, args):
        w0, w1, q, scale, offset, stride, row0, num_tiles, out0, out1 = args
        _emit(context, builder, [w0, w1], q, scale, offset, stride, [row0], num_tiles, [out0, out1])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), codegen


@intrinsic
def dot_1_of_4(typingctx, w0, w1, w2, w3, q, scale, offset, stride, row0, num_tiles, out0, out1, out2, out3):
    """Four rows of tiles, one token."""

    def codegen(context, builder, signature, args):
        streams, (q, scale, offset, stride, row0, num_tiles), outs = args[:4], args[4:10], args[10:]
        _emit(context, builder, streams, q, scale, offset, stride, [row0], num_tiles, outs)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 14), codegen


@intrinsic
def dot_4(typingctx, weights, q, scale, offset, stride, row0, row1, row2, row3, num_tiles, out):
    """One row of tiles, four tokens."""

    def codegen(context, builder, signature, args):
        weights, q, scale, offset, stride, row0, row1, row2, row3, num_tiles, out = args
        _emit(context, builder, [weights], q, scale, offset, stride, [row0, row1, row2, row3], num_tiles, [out])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), codegen


@njit(nogil=True, cache=True)
@stamped
def quantise_tokens(job_address, x, row_start, row_stop):
    """Rows of ``x`` float32 [T, H] -> tokens_q, tokens_scale, tokens_offset of the job."""
    job = record_at(job_address)
    padded = (job.hidden_size + 63) // 64 * 64
    for row in range(row_start, row_stop):
        quantise_int8(x, row, padded, job.tokens_q, job.tokens_scale, job.tokens_offset)


@njit(nogil=True, cache=True)
@stamped
def _finish_group(job_address, dots_address, hidden_address, token, pair, group):
    """silu(gate) * up of one pair and one group of 32 rows, quantised; the last group clears the padding."""
    job = record_at(job_address)
    size = job.intermediate_size
    num_groups = (size + 63) // 64 * 2
    dots = carray(pointer(dots_address), 256, np.float32)
    hidden = carray(pointer(hidden_address), 32, np.float32)
    columns = min(32, size - group * 32)
    for r in range(32):
        at = (r // 16) * 64 + token * 16 + r % 16
        hidden[r] = silu(dots[at]) * dots[128 + at] if r < columns else np.float32(0.0)
    to = pair * num_groups + group
    q, scale, offset = job.hidden_q + to * 32, job.hidden_scale + to * 4, job.hidden_offset + to * 4
    quantise_group(hidden, 0, columns, q, scale, offset)
    if (group + 1) * 32 >= size and group + 1 < num_groups:
        quantise_group(hidden, 0, 0, q + 32, scale + 4, offset + 4)


@njit(nogil=True, cache=True)
@stamped
def gate_up(job_address, unit_start, unit_stop):
    """Units of 32 intermediate rows (see the header): writes hidden_q, hidden_scale, hidden_offset.

    Returns the bytes of weights read.
    """
    job = record_at(job_address)
    num_tiles = (job.hidden_size + 63) // 64
    num_tile_rows = (job.intermediate_size + 15) // 16
    num_units = (job.intermediate_size + 31) // 32
    row_bytes = num_tiles * TILE_BYTES
    up_bytes = num_tile_rows * row_bytes
    stride = num_tiles * 64
    weights_of_expert = carray(pointer(job.expert_weights), job.num_experts, np.int64)
    pair_start = carray(pointer(job.pair_start), job.num_experts + 1, np.int64)
    token_of_pair = carray(pointer(job.token_of_pair), job.num_pairs, np.int32)
    # Two buffers of dot products, [gate_proj, up_proj] x [2 tile rows] x [4 tokens] x [16 rows] each.
    one, two, hidden = stack_1k(), stack_1k(), stack_1k()
    q, scale, offset = job.tokens_q, job.tokens_scale, job.tokens_offset
    bytes_read = 0
    unit = unit_start
    while unit < unit_stop:
        expert = unit // num_units
        first = unit - expert * num_units
        run = min(unit_stop - unit, num_units - first)  # units of this expert
        unit += run
        bytes_read += (min(num_tile_rows, 2 * (first + run)) - 2 * first) * 2 * row_bytes
        start, last = pair_start[expert], pair_start[expert + 1]
        alone = last == start + 1
        half = run // 2 if alone else 0
        for i in range(half):  # one token: units half a run apart, side by side
            a = np.int64(token_of_pair[start])
            gate = weights_of_expert[expert] + 2 * (first + i) * row_bytes
            far = 2 * half * row_bytes
            tile_rows = min(2, num_tile_rows - 2 * (first + half + i))
            for n in range(2):
                w, o = gate + n * row_bytes, n * 256
                if n < tile_rows:
                    dot_1_of_4(
                        w, w + up_bytes, w + far, w + far + up_bytes, q, scale, offset, stride, a, num_tiles,
                        one + o, one + o + 512, two + o, two + o + 512,
                    )  # fmt: skip
                else:
                    dot_1_of_2(w, w + up_bytes, q, scale, offset, stride, a, num_tiles, one + o, one + o + 512)
            _finish_group(job_address, one, hidden, 0, start, first + i)
            _finish_group(job_address, two, hidden, 0, start, first + half + i)
        for group in range(first + 2 * half, first + run):
            gate = weights_of_expert[expert] + 2 * group * row_bytes
            tile_rows = min(2, num_tile_rows - 2 * group)
            pair = start
            while pair < last:
                count = 4 if pair + 4 <= last else 1
                a = np.int64(token_of_pair[pair])
                for n in range(tile_rows):
                    w, o = gate + n * row_bytes, one + n * 256
                    if count == 1:
                        dot_1_of_2(w, w + up_bytes, q, scale, offset, stride, a, num_tiles, o, o + 512)
                    else:
                        b, c = np.int64(token_of_pair[pair + 1]), np.int64(token_of_pair[pair + 2])
                        d = np.int64(token_of_pair[pair + 3])
                        for projection in range(2):
                            dot_4(
                                w + projection * up_bytes, q, scale, offset, stride, a, b, c, d, num_tiles,
                                o + projection * 512,
                            )  # fmt: skip
                for m in range(count):
                    _finish_group(job_address, one, hidden, m, pair + m, group)
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
    q, scale, offset = job.hidden_q, job.hidden_scale, job.hidden_offset
    unit = unit_start
    while unit < unit_stop:
        expert = unit // num_units
        first = unit - expert * num_units
        run = min(unit_stop - unit, num_units - first)  # units of this expert
        unit += run
        start, last = pair_start[expert], pair_start[expert + 1]
        weights = weights_of_expert[expert] + 2 * up_bytes
        quarter = run // 4 if last == start + 1 else 0
        for i in range(quarter):  # one token: rows a quarter of the run apart, side by side
            w, o = weights + (first + i) * row_bytes, job.output + (start * num_units + first + i) * 64
            far, off = quarter * row_bytes, quarter * 64
            dot_1_of_4(
                w, w + far, w + 2 * far, w + 3 * far, q, scale, offset, stride, start, num_tiles,
                o, o + off, o + 2 * off, o + 3 * off,
            )  # fmt: skip
        for n in range(first + 4 * quarter, first + run):
            w = weights + n * row_bytes
            pair = start
            while pair < last:
                to = job.output + (pair * num_units + n) * 64
                if pair + 4 <= last:
                    dot_4(w, q, scale, offset, stride, pair, pair + 1, pair + 2, pair + 3, num_tiles, out_address)
                    for m in range(4):
                        output = carray(pointer(to + m * num_units * 64), 16, np.float32)
                        for r in range(16):
                            output[r] = out[m * 16 + r]
                    pair += 4
                else:
                    dot_1(w, q, scale, offset, stride, pair, num_tiles, to)
                    pair += 1
    return (unit_stop - unit_start) * row_bytes


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
