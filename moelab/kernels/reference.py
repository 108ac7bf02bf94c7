"""Float64 truth of the routed experts of one layer, read from the packed bytes.

Unpacks by the words of the layout (see ``layout``), element by element and without its code, so that the two
can disagree. ``activation=None`` is the truth; with a mode, the activations are quantised as the mode
says and everything else stays float64, which separates the error of quantisation from that of a kernel.
Slow on purpose. Floor 1: NumPy only.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from moelab.domain.trace import NO_EXPERT
from moelab.kernels.job import Activation, WeightFormat
from moelab.kernels.layout import ExpertLayout

STRIP_ROWS = 64
# What the kernels of a native ISA make of mode bf16 beside quantised weights (``activation_code`` of job.py).
Carried = Activation | Literal["int16"]

Weights = tuple[np.ndarray, np.ndarray, np.ndarray]


class Blocks(Protocol):
    """Packed experts by id: an ``ExpertArena`` or a list of uint8 arrays."""

    def __getitem__(self, expert: int, /) -> np.ndarray: ...


# Largest ||kernel - truth|| / ||truth|| allowed. "Seen" is the largest of 40 random layers per format and mode
# (H 33..320, I 17..128, 1..11 tokens of 3 slots, normal activations, Numba).
TOLERANCE_F32 = 2e-6  # float32 rounding of sums of up to a few thousand products; seen 4.1e-7
TOLERANCE_BF16 = 8e-3  # activations and hidden vector rounded to 8 bits of mantissa; seen 4.8e-3
TOLERANCE_INT8 = 3e-2  # absmax / 127 per group of 32, twice; seen 1.3e-2
TOLERANCES: dict[tuple[WeightFormat, Activation], float] = {
    ("float32", "f32"): TOLERANCE_F32,
    ("bf16", "bf16"): TOLERANCE_BF16,
    ("int4_g32", "bf16"): TOLERANCE_BF16,
    ("int4_g32", "int8"): TOLERANCE_INT8,
    ("int8_g32", "bf16"): TOLERANCE_BF16,
    ("int8_g32", "int8"): TOLERANCE_INT8,
}

# The same against the reference with the mode's quantisation. Seen: 4.1e-7, 2.1e-5, 2.3e-7; the room above is
# for the rare hidden value that float32 sums push over a rounding border (one step of one value).
KERNEL_TOLERANCE_F32 = 2e-6  # nothing is quantised: as TOLERANCE_F32
KERNEL_TOLERANCE_BF16 = 5e-4  # a step is 2**-8 of one hidden value
KERNEL_TOLERANCE_INT16 = 5e-5  # a step is 1/32639 of the absmax of one group
KERNEL_TOLERANCE_INT8 = 3e-3  # a step is 1/127 of the absmax of one group
KERNEL_TOLERANCES: dict[tuple[WeightFormat, Activation], float] = {
    ("float32", "f32"): KERNEL_TOLERANCE_F32,
    ("bf16", "bf16"): KERNEL_TOLERANCE_BF16,
    ("int4_g32", "bf16"): KERNEL_TOLERANCE_BF16,
    ("int4_g32", "int8"): KERNEL_TOLERANCE_INT8,
    ("int8_g32", "bf16"): KERNEL_TOLERANCE_BF16,
    ("int8_g32", "int8"): KERNEL_TOLERANCE_INT8,
}


def reference_projection(tiles: np.ndarray, rows: int, columns: int, weight_format: WeightFormat) -> np.ndarray:
    """Tiles uint8 (flat) -> float64 [R, C]."""
    matrix = np.empty((rows, columns), np.float64)
    for first in range(0, rows, STRIP_ROWS):  # the index arrays of a whole K2 projection would be gigabytes
        last = min(first + STRIP_ROWS, rows)
        matrix[first:last] = _strip(tiles, first, last, columns, weight_format)
    return matrix


def _strip(tiles: np.ndarray, first: int, last: int, columns: int, weight_format: WeightFormat) -> np.ndarray:
    """Rows ``first`` to ``last`` of the projection, float64."""
    r, c = np.arange(first, last)[:, None], np.arange(columns)[None]
    num_tiles = (columns + 63) // 64
    tile = (r // 16) * num_tiles + c // 64  # [rows, C], like all that has both r and c in it
    row, column = r % 16, c % 64
    if weight_format == "float32":
        return tiles.view("<f4")[tile * 1024 + column * 16 + row].astype(np.float64)
    if weight_format == "bf16":
        halves = tiles.view("<u2")[tile * 1024 + (column // 2) * 32 + row * 2 + column % 2]
        return _bf16_value(halves)
    if weight_format == "int8_g32":
        q = tiles[tile * 1088 + (column // 4) * 64 + row * 4 + column % 4].astype(np.float64) - 128
        halves = tiles.view("<u2")[tile[:, ::32] * 544 + 512 + (column[:, ::32] // 32) * 16 + row]
        return q * np.repeat(_bf16_value(halves), 32, axis=1)[:, :columns]
    byte = tiles[tile * 576 + (column // 8) * 64 + row * 4 + column % 4]
    nibble = np.where(column % 8 < 4, byte & 15, byte >> 4).astype(np.float64)
    # One scale for each row and group of 32 columns.
    halves = tiles.view("<u2")[tile[:, ::32] * 288 + 256 + (column[:, ::32] // 32) * 16 + row]
    return (nibble - 8) * np.repeat(_bf16_value(halves), 32, axis=1)[:, :columns]


def unpack_expert(block: np.ndarray, layout: ExpertLayout) -> Weights:
    """One expert, uint8 -> gate_proj [I, H], up_proj [I, H], down_proj [H, I] as float64."""
    hidden, intermediate, weight_format = layout.hidden_size, layout.intermediate_size, layout.weight_format
    tile_bytes = {"float32": 4096, "bf16": 2048, "int4_g32": 576, "int8_g32": 1088}[weight_format]
    projections, start = [], 0
    for rows, columns in ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate)):
        stop = start + -(-rows // 16) * -(-columns // 64) * tile_bytes
        projections.append(reference_projection(block[start:stop], rows, columns, weight_format))
        start = stop
    return projections[0], projections[1], projections[2]


def reference_activations(x: np.ndarray, activation: Carried | None) -> np.ndarray:
    """x [rows, C] -> the float64 numbers that a kernel of this mode computes with."""
    if activation is None:
        return np.asarray(x, np.float64)
    x = np.asarray(x, np.float32)
    if activation == "f32":
        return x.astype(np.float64)
    if activation == "bf16":
        mantissa, exponent = np.frexp(x.astype(np.float64))
        return np.ldexp(np.rint(mantissa * 256) / 256, exponent)
    if activation == "int16":
        return reference_int16(x)
    q, scale = reference_quantise_int8(x)
    return (q * np.repeat(scale.astype(np.float64), 32, axis=1))[:, : x.shape[1]]


def reference_quantise_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x float32 [rows, C] -> q int64 [rows, padded C to 32], scale float32 [rows, groups], as the header says."""
    rows, columns = x.shape
    num_groups = -(-columns // 32)
    padded = np.zeros((rows, num_groups * 32), np.float32)
    padded[:, :columns] = x
    q = np.zeros(padded.shape, np.int64)
    scale = np.zeros((rows, num_groups), np.float32)
    for row in range(rows):
        for g in range(num_groups):
            group = padded[row, g * 32 : g * 32 + 32]
            absmax = np.abs(group).max()
            if absmax < 2.0**-100:
                continue
            q[row, g * 32 : g * 32 + 32] = np.rint(group * (np.float32(127) / absmax))
            scale[row, g] = absmax / np.float32(127)
    return q, scale


def reference_int16(x: np.ndarray) -> np.ndarray:
    """x float32 [rows, C] -> float64, each group of 32 in steps of absmax / 32639 or in bf16, as the header says."""
    values = reference_activations(x, "bf16")
    for row in range(len(x)):
        for first in range(0, x.shape[1], 32):
            group = x[row, first : first + 32]
            absmax = np.abs(group).max()
            if not 2.0**-100 <= absmax < np.inf:
                continue
            q = np.rint(group * (np.float32(32639) / absmax)).astype(np.float64)
            if 4 * (np.abs(q) >= 512).sum() >= (group != 0).sum():
                values[row, first : first + 32] = q * float(absmax / np.float32(32639))
    return values


def reference_experts(
    x: np.ndarray,
    expert_ids: np.ndarray,
    gate_weights: np.ndarray,
    blocks: Blocks,
    layout: ExpertLayout,
    activation: Carried | None = None,
    bf16_weights: bool = False,
) -> np.ndarray:
    """y float64 [T, H] = sum over slots of gate weight * down(silu(gate(x)) * up(x)).

    x [T, H], expert_ids [T, K] (65535: unrouted), gate_weights [T, K]; ``blocks[e]`` is expert e as packed
    bytes (an ``ExpertArena`` or a list). Only experts that occur are unpacked. ``bf16_weights`` rounds each weight
    times its scale to bf16, as the AMX kernels for bf16 activations do.
    """
    y = np.zeros(x.shape, np.float64)
    inputs = reference_activations(x, activation)
    used = sorted(set(np.asarray(expert_ids).ravel().tolist()) - {NO_EXPERT})
    weights = {expert: unpack_expert(blocks[expert], layout) for expert in used}
    if bf16_weights:
        weights = {e: tuple(reference_activations(matrix, "bf16") for matrix in w) for e, w in weights.items()}  # type: ignore[misc]
    for t in range(expert_ids.shape[0]):
        for k in range(expert_ids.shape[1]):
            expert = int(expert_ids[t, k])
            if expert == NO_EXPERT:
                continue
            gate_proj, up_proj, down_proj = weights[expert]
            gate, up = gate_proj @ inputs[t], up_proj @ inputs[t]
            hidden = gate / (1.0 + np.exp(-gate)) * up
            y[t] += float(gate_weights[t, k]) * (down_proj @ reference_activations(hidden[None], activation)[0])
    return y


def relative_error(y: np.ndarray, truth: np.ndarray) -> float:
    """||y - truth|| / ||truth||; 0 where both are zero."""
    norm = float(np.linalg.norm(truth))
    difference = float(np.linalg.norm(y - truth))
    return difference / norm if norm > 0 else difference


def _bf16_value(bits: np.ndarray) -> np.ndarray:
    """bf16 bits -> float64 from sign, exponent and mantissa (finite numbers)."""
    b = bits.astype(np.int64)
    sign = np.where(b >> 15 == 1, -1.0, 1.0)
    exponent, mantissa = (b >> 7) & 255, b & 127
    normal = np.ldexp(1.0 + mantissa / 128.0, exponent - 127)
    return sign * np.where(exponent == 0, np.ldexp(mantissa / 128.0, -126), normal)
