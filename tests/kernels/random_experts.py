"""Random experts of one layout in an arena, and random routings, for the kernel tests."""

from __future__ import annotations

import numpy as np

from moelab.kernels import NO_EXPERT, ExpertArena, ExpertLayout, float32_to_bf16


def random_projection(rng: np.random.Generator, shape: tuple[int, int], weight_format: str):
    rows, columns = shape
    if weight_format == "int4_g32":
        packed = rng.integers(-(2**31), 2**31, (rows, -(-columns // 8)), dtype=np.int64).astype(np.int32)
        scale = rng.uniform(0.002, 0.02, (rows, -(-columns // 32))).astype(np.float32)
        return packed, float32_to_bf16(scale)
    if weight_format == "int8_g32":
        scale = rng.uniform(0.0002, 0.002, (rows, -(-columns // 32))).astype(np.float32)
        return rng.integers(-128, 128, shape, dtype=np.int8), float32_to_bf16(scale)
    weights = (0.05 * rng.standard_normal(shape)).astype(np.float32)
    return float32_to_bf16(weights) if weight_format == "bf16" else weights


def random_arena(layout: ExpertLayout, num_experts: int, seed: int) -> ExpertArena:
    """An arena with random experts."""
    rng = np.random.default_rng(seed)
    arena = ExpertArena(layout, num_experts)
    for expert in range(num_experts):
        sources = [random_projection(rng, shape, layout.weight_format) for shape in layout.shapes]
        layout.pack_expert(arena[expert], *sources)
    return arena


def random_step(rng: np.random.Generator, num_tokens: int, top_k: int, num_experts: int, hidden_size: int):
    """x, expert_ids (distinct per token, some slots unrouted), gate_weights."""
    x = rng.standard_normal((num_tokens, hidden_size)).astype(np.float32)
    ids = np.stack([rng.permutation(num_experts)[:top_k] for _ in range(num_tokens)]).astype(np.uint16)
    ids[rng.random(ids.shape) < 0.15] = NO_EXPERT
    return x, ids, rng.random(ids.shape).astype(np.float32)


def carried_as(isa: str, weight_format: str, activation: str) -> str:
    """The numbers of mode bf16 are int16 beside quantised weights, but in tiles of bf16 and in Numba's float32."""
    quantised = weight_format in ("int4_g32", "int8_g32")
    return "int16" if activation == "bf16" and quantised and isa not in ("amx", "numba") else activation
