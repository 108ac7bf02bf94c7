"""The routed experts in NumPy, in the order of kernels/moelab_kernels.h and of the manual's TDPBF16PS: the same bits.

Knows numbers q and scales, not layouts, tiles of 16 or threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import NO_EXPERT
from moelab.kernels import ExpertArena, ExpertLayout, bf16_to_float32, float32_to_bf16
from moelab.kernels.reference import reference_quantise_int8
from tests.kernels.int16_twin import dot_int16

ZERO = {"int4_g32": 8, "int8_g32": 128}
F = np.float32


@dataclass(frozen=True)
class Matrix:
    """q int [R, C] of signed numbers and scale bf16 bits [R, ceil(C / 32)], or bf16 bits [R, C] alone."""

    q: np.ndarray
    scale: np.ndarray | None

    def source(self, weight_format: str):
        """What ``ExpertLayout.pack_expert`` takes."""
        if weight_format == "bf16":
            return self.q
        if weight_format == "int8_g32":
            return self.q.astype(np.int8), self.scale
        rows, columns = self.q.shape
        nibbles = np.full((rows, -(-columns // 8) * 8), 8, np.uint32)
        nibbles[:, :columns] = self.q + 8
        words = (nibbles.reshape(rows, -1, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
        return words.view(np.int32), self.scale

    def rounded(self) -> np.ndarray:
        """float32 [R, C]: the numbers that a bf16 tile holds."""
        if self.scale is None:
            return bf16_to_float32(self.q)
        wide = np.repeat(bf16_to_float32(self.scale), 32, axis=1)[:, : self.q.shape[1]]
        return bf16_to_float32(float32_to_bf16(self.q.astype(F) * wide))


def random_matrix(rng: np.random.Generator, rows: int, columns: int, weight_format: str) -> Matrix:
    """Scales of both signs and several magnitudes; q over its whole range."""
    if weight_format == "bf16":
        return Matrix(float32_to_bf16((0.1 * rng.standard_normal((rows, columns))).astype(F)), None)
    zero = ZERO[weight_format]
    scale = rng.uniform(0.2, 2, (rows, -(-columns // 32))) * rng.choice([-1, 1], (rows, 1)) / zero / 4
    return Matrix(rng.integers(-zero, zero, (rows, columns)), float32_to_bf16(scale.astype(F)))


def random_experts(rng: np.random.Generator, layout: ExpertLayout, num_experts: int):
    """(arena, matrices of each expert)."""
    arena = ExpertArena(layout, num_experts)
    experts = [
        [random_matrix(rng, *shape, layout.weight_format) for shape in layout.shapes] for _ in range(num_experts)
    ]
    for expert, matrices in enumerate(experts):
        layout.pack_expert(arena[expert], *(matrix.source(layout.weight_format) for matrix in matrices))
    return arena, experts


def dot_int8(x: np.ndarray, matrix: Matrix) -> np.ndarray:
    """x float32 [T, C] -> [T, R]: integer sums of groups of 32 columns, the float order of the header."""
    a, a_scale = reference_quantise_int8(x)
    w = np.zeros((len(matrix.q), a.shape[1]), np.int64)
    w[:, : matrix.q.shape[1]] = matrix.q
    w_scale = bf16_to_float32(matrix.scale)
    y = np.zeros((len(x), len(w)), F)
    for g in range(a_scale.shape[1]):
        columns = slice(32 * g, 32 * g + 32)
        isum = (a[:, columns] @ w[:, columns].T).astype(np.int32)
        y += (isum.astype(F) * a_scale[:, g, None]) * w_scale[None, :, g]
    return y


def dot_bf16(x: np.ndarray, matrix: Matrix) -> np.ndarray:
    """x float32 [T, C] -> [T, R]: even and odd columns of a group apart, then both, then the tile; no denormals."""
    pad = -x.shape[1] % 64
    a = np.pad(bf16_to_float32(float32_to_bf16(x)), ((0, 0), (0, pad)))
    w = np.pad(matrix.rounded(), ((0, 0), (0, pad)))
    y = np.zeros((len(x), len(w)), F)
    for start in range(0, a.shape[1], 32):
        sums = np.zeros((2, *y.shape), F)
        for c in range(start, start + 32):
            sums[c % 2] += a[:, c, None] * w[None, :, c]  # a product of two bf16 numbers is exact in float32
        y += sums[0] + sums[1]
    return y


def silu(x: np.ndarray) -> np.ndarray:
    """kernels/silu.h, in float32."""
    t = np.minimum(np.maximum(-x, F(-87)), F(87))
    n = (t * F(1.4426950408889634) + F(12582912)) - F(12582912)
    r = t - n * F(0.693359375)
    r = r - n * F(-2.12194440e-4)
    p = np.full_like(x, F(1.9875691500e-4))
    for constant in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + F(constant)
    p = p * (r * r) + r + F(1)
    return x / (F(1) + p * ((n.astype(np.int32) + 127) << 23).view(F))


def forward(x, expert_ids, gate_weights, experts, activation: str) -> np.ndarray:
    """y float32 [T, H]; ``experts`` are (gate, up, down) by id."""
    dot = {"int8": dot_int8, "int16": dot_int16, "bf16": dot_bf16}[activation]
    y = np.zeros_like(x)
    for t in range(len(x)):
        for k in range(expert_ids.shape[1]):
            if expert_ids[t, k] == NO_EXPERT:
                continue
            gate, up, down = experts[expert_ids[t, k]]
            hidden = silu(dot(x[t : t + 1], gate)) * dot(x[t : t + 1], up)
            y[t] = y[t] + F(gate_weights[t, k]) * dot(hidden, down)[0]
    return y
