"""float32 weights -> int4 or int8 in groups of 32 columns with bf16 scales, nearest step.

Knows numbers, not tiles (see ``layout``). Floor 1: NumPy only.
"""

from __future__ import annotations

import numpy as np

from moelab.kernels.job import GROUP
from moelab.kernels.layout import bf16_to_float32, float32_to_bf16


def _groups(weights: np.ndarray) -> np.ndarray:
    """float32 [R, C] -> [R, groups, 32], padded with zeros."""
    rows, columns = weights.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = weights
    return padded.reshape(rows, -1, GROUP)


def _rounded(groups: np.ndarray, scale: np.ndarray, smallest: int, largest: int) -> np.ndarray:
    divisor = np.where(scale & 0x7FFF == 0, np.float32(1), bf16_to_float32(scale))
    # The scale is rounded to bf16, so that the largest of a group can land just beyond the last step.
    return np.clip(np.rint(groups / divisor[:, :, None]), smallest, largest).astype(np.int8)


def quantise_int8(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, C] -> (q int8 [R, C], scale bf16 bits uint16 [R, ceil(C / 32)]): absmax / 127 of a group."""
    groups = _groups(weights)
    scale = float32_to_bf16(np.abs(groups).max(axis=2) / np.float32(127))
    q = _rounded(groups, scale, -127, 127)
    return np.ascontiguousarray(q.reshape(len(q), -1)[:, : weights.shape[1]]), scale


def quantise_int4(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, C] -> (weight_packed int32 [R, ceil(C / 8)], scale bf16 bits): the largest of a group becomes -8.

    The scale carries the sign of that number, so that all 16 steps are used.
    """
    groups = _groups(weights)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    scale = float32_to_bf16(largest / np.float32(-8))
    nibbles = (_rounded(groups, scale, -8, 7) + 8).astype(np.uint32).reshape(len(groups), -1, 8)
    words = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
    return np.ascontiguousarray(words[:, : -(-weights.shape[1] // 8)]).view(np.int32), scale
