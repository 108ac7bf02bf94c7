"""Mode int16 of kernels/moelab_kernels.h in NumPy: the same bits. Knows numbers and groups, not planes of bytes."""

from __future__ import annotations

import numpy as np

from moelab.kernels import bf16_to_float32, float32_to_bf16

F = np.float32
STEPS = 32639  # of the largest number of a group
LARGE, SHARE = 512, 4  # at least one of SHARE numbers that are not zero has LARGE steps


def quantise_int16(group: np.ndarray) -> tuple[np.ndarray, np.float32] | None:
    """32 float32 numbers -> (q int64, scale); ``None`` for a group that is kept in bf16."""
    if not np.isfinite(group).all():
        return None
    largest = max(abs(float(number)) for number in group)
    if largest == 0:
        return np.zeros(32, np.int64), F(0)
    if largest < 2.0**-100:
        return None
    inverse = F(STEPS) / F(largest)
    q = np.array([int(np.rint(number * inverse)) for number in group])
    if SHARE * sum(abs(int(number)) >= LARGE for number in q) < sum(number != 0 for number in group):
        return None
    return q, F(largest) / F(STEPS)


def dot_int16(x: np.ndarray, matrix) -> np.ndarray:
    """x float32 [T, C], matrix of signed q [R, C] and bf16 scales [R, groups] -> [T, R], in the header's order."""
    num_groups = -(-x.shape[1] // 32)
    a = np.pad(x.astype(F), ((0, 0), (0, 32 * num_groups - x.shape[1])))
    w = np.zeros((len(matrix.q), a.shape[1]), np.int64)
    w[:, : matrix.q.shape[1]] = matrix.q
    w_scale = bf16_to_float32(matrix.scale)
    y = np.zeros((len(x), len(w)), F)
    for t in range(len(x)):
        for g in range(num_groups):
            columns = slice(32 * g, 32 * g + 32)
            quantised = quantise_int16(a[t, columns])
            if quantised is None:
                numbers = bf16_to_float32(float32_to_bf16(a[t, columns]))
                total, scale = np.zeros(len(w), F), F(1)
                with np.errstate(invalid="ignore", over="ignore"):
                    for c in range(32):
                        total += w[:, 32 * g + c].astype(F) * numbers[c]
            else:
                q, scale = quantised
                total = (w[:, columns] @ q).astype(np.int32).astype(F)
            with np.errstate(invalid="ignore", over="ignore"):
                y[t] += (total * scale) * w_scale[:, g]
    return y
