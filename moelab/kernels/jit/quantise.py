"""Activations in the three modes, and SiLU with one fixed order of operations.

``f32`` copies, ``bf16`` rounds to nearest even (kept as float32 numbers here: the Numba kernels multiply in
float32), ``int8`` works on groups of 32 columns: absmax over the group, q = rint(x * (127 / absmax)),
scale = absmax / 127, offset = -8 * sum(q), which takes back the + 8 of the stored nibbles. A group below
2**-100 is zero; a NaN or infinity gives a NaN scale, so it reaches the output instead of vanishing.

``silu`` uses a polynomial exp without contraction, so that every ISA gives the same bits. Floor 1.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import carray, njit

from moelab.kernels.jit.memory import bits_float, float_bits, pointer
from moelab.source_stamp import stamped

GROUP = 32
SMALLEST_GROUP = np.float32(2.0**-100)
ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding and subtracting rounds to nearest even
LOG2E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
ONE = np.float32(1.0)


@njit(nogil=True, cache=True)
@stamped
def silu(x):
    """x / (1 + exp(-x)): exp by the Cephes polynomial (Moshier 1992), clamped to +-87."""
    t = -x
    t = t if t > np.float32(-87.0) else np.float32(-87.0)  # a NaN lands here and comes back through x
    t = t if t < np.float32(87.0) else np.float32(87.0)
    n = (t * LOG2E + ROUND) - ROUND
    r = t - n * LN2_HIGH
    r = r - n * LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * (r * r) + r + ONE
    e = p * bits_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
    return x / (ONE + e)


@njit(nogil=True, cache=True)
@stamped
def round_bf16(x):
    """float32 -> the nearest bf16, ties to even, as float32; NaN stays NaN."""
    bits = float_bits(x)
    rounded = (bits + (((bits >> np.int32(16)) & np.int32(1)) + np.int32(0x7FFF))) & np.int32(-65536)
    return bits_float(rounded) if x == x else x


@njit(nogil=True, cache=True)
@stamped
def quantise_group(x, first, count, q_address, scale_address, offset_address):
    """One int8 group of 32: ``count`` numbers ``x[first:]``, the rest of the group is zero."""
    q = carray(pointer(q_address), GROUP, np.int8)
    scale = carray(pointer(scale_address), 1, np.float32)
    offset = carray(pointer(offset_address), 1, np.int32)
    largest = np.int32(0)
    for c in range(count):
        largest = max(largest, np.int32(float_bits(x[first + c]) & np.int32(0x7FFFFFFF)))
    absmax = bits_float(largest)
    if absmax < SMALLEST_GROUP:
        for c in range(GROUP):
            q[c] = 0
        scale[0] = np.float32(0.0)
        offset[0] = 0
        return
    if largest >= np.int32(0x7F800000):
        for c in range(GROUP):
            q[c] = 0
        scale[0] = np.float32(np.nan)
        offset[0] = 0
        return
    inverse = np.float32(127.0) / absmax
    total = np.int32(0)
    for c in range(count):
        rounded = np.int32((x[first + c] * inverse + ROUND) - ROUND)
        q[c] = np.int8(rounded)
        total += rounded
    for c in range(count, GROUP):
        q[c] = 0
    scale[0] = absmax / np.float32(127.0)
    offset[0] = np.int32(-8) * total


@njit(nogil=True, cache=True)
@stamped
def quantise_int8(x, row, padded_columns, q_address, scale_address, offset_address):
    """Row ``row`` of ``x`` float32 [rows, C] -> its row of q, scale and offset."""
    num_groups = padded_columns // GROUP
    num_columns = x.shape[1]
    values = x[row]
    for g in range(num_groups):
        count = min(max(num_columns - g * GROUP, 0), GROUP)
        at = row * num_groups + g
        quantise_group(
            values, g * GROUP, count, q_address + at * GROUP, scale_address + at * 4, offset_address + at * 4
        )


@njit(nogil=True, cache=True)
@stamped
def quantise_float(x, row, padded_columns, q_address, rounds):
    """Row ``row`` of ``x`` -> float32 row, rounded to bf16 if ``rounds``; padding is zero."""
    out = carray(pointer(q_address + row * padded_columns * 4), padded_columns, np.float32)
    num_columns = x.shape[1]
    if rounds:
        for c in range(num_columns):
            out[c] = round_bf16(x[row, c])
    else:
        for c in range(num_columns):
            out[c] = x[row, c]
    for c in range(num_columns, padded_columns):
        out[c] = np.float32(0.0)
