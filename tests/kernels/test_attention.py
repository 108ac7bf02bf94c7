"""Latent attention of a decode step, float32 and bf16 cache, against float64: norm, rotation, rounding, softmax."""

from __future__ import annotations

import numpy as np
import pytest

from moelab.kernels import isa_table
from moelab.kernels.native import sized
from moelab.kernels.ops import Attention, Ops, attend_address, attention_chunks

ISAS = [row.isa for row in isa_table() if row.supported and row.isa not in ("numba", "amx", "amx+avx512")]
pytestmark = pytest.mark.skipif(not ISAS, reason="native kernels are not built")
EPS, SCALE = 1e-6, 0.11


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleave: bool) -> np.ndarray:
    first, second = (x[..., ::2], x[..., 1::2]) if interleave else np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_attention_equals_float64(isa, bf16, seed):
    draw = np.random.default_rng(seed)
    tokens, heads, rank, nope, rope = 3, int(draw.integers(1, 20)), int(draw.integers(20, 90)), 5, 2 * (1 + seed)
    capacity, interleave = 700, bool(seed % 2)
    positions = np.array([draw.integers(0, 60), 255, draw.integers(300, capacity)], np.int64)
    rows = np.array([2, 0, 1], np.int64)

    def numbers(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    a, kv_norm, q, query = numbers(tokens, rank + rope), numbers(rank), numbers(tokens, heads * (nope + rope)), None
    query = numbers(heads * tokens, rank)  # what W_UK makes of query_nope is another operation's
    angles = numbers(capacity, rope // 2)
    cos, sin = np.cos(angles), np.sin(angles)
    past = numbers(tokens, capacity, rank + rope)
    cache = bf16_bits(past) if bf16 else past.copy()
    kept = widened(cache) if bf16 else past

    ops = Ops(tokens, isa)
    query_nope, query_rope = ops.array("nope", heads * tokens, nope), ops.array("rope", heads * tokens, rope)
    mixed = ops.array("mixed", heads * tokens, rank)
    chunks = max(attention_chunks(int(position) + 1) for position in positions)
    partial = np.zeros(tokens * chunks * heads * (rank + 2), np.float32)
    attention = sized(
        Attention, num_tokens=tokens, num_heads=heads, kv_rank=rank, nope_dim=nope, rope_dim=rope, a=a.ctypes.data,
        a_stride=rank + rope, kv_norm=kv_norm.ctypes.data, eps=EPS, softmax_scale=SCALE, cos=cos.ctypes.data,
        sin=sin.ctypes.data, interleave=interleave, cache_bf16=bf16, cache=cache.ctypes.data,
        row_numbers=capacity * (rank + rope), row_of_token=rows.ctypes.data, position_of_token=positions.ctypes.data,
        q=q.ctypes.data, q_stride=q.shape[1], query_nope=query_nope.ctypes.data, query_rope=query_rope.ctypes.data,
        query=query.ctypes.data, query_stride=rank, partial=partial.ctypes.data, max_chunks=chunks,
        mixed=mixed.ctypes.data, mixed_stride=rank, attend=attend_address(isa, bf16),
    )  # fmt: skip
    for part in ("latent", "query", "attend", "merge"):
        ops.attention(attention, part=part)
    ops.run(None)

    for token in range(tokens):
        row, position = rows[token], positions[token]
        latent = a[token, :rank].astype(np.float64)
        latent = kv_norm * latent / np.sqrt((latent**2).mean() + EPS)
        new = np.concatenate([latent, rotated(a[token, rank:], cos[position], sin[position], interleave)])
        written = widened(cache)[row, position] if bf16 else cache[row, position]
        if bf16:  # rounded to the nearest: half a step of eight bits, and what float32 lost before
            np.testing.assert_allclose(written, new, rtol=2.0**-8 + 1e-5, atol=1e-6)
            assert not np.array_equal(written, new.astype(np.float32))
        else:
            np.testing.assert_allclose(written, new, rtol=2e-5, atol=1e-6)
        memory = kept[row, : position + 1].astype(np.float64)
        memory[position] = written
        others = widened(cache) if bf16 else cache
        np.testing.assert_array_equal(others[row, position + 1 :], kept[row, position + 1 :])
        for head in range(heads):
            at = head * tokens + token
            mine = q[token].reshape(heads, nope + rope)[head]
            np.testing.assert_array_equal(query_nope[at], mine[:nope])
            turned = rotated(mine[nope:].astype(np.float64), cos[position], sin[position], interleave)
            np.testing.assert_allclose(query_rope[at], turned, rtol=2e-5, atol=1e-6)
            scores = SCALE * (memory[:, :rank] @ query[at].astype(np.float64) + memory[:, rank:] @ turned)
            weights = np.exp(scores - scores.max())
            expected = weights / weights.sum() @ memory[:, :rank]
            np.testing.assert_allclose(mixed[at], expected, rtol=1e-4, atol=2e-5)


def mixed_of(isa: str, bf16: bool, query: np.ndarray, rope: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """[heads, rank] of the last of ``cache`` [positions, rank + rope]; query [heads, rank], rope [heads, rope]."""
    (heads, rank), width = query.shape, cache.shape[1]
    stored = bf16_bits(cache) if bf16 else cache
    row, position = np.zeros(1, np.int64), np.array([len(cache) - 1], np.int64)
    chunks = attention_chunks(len(cache))
    partial, mixed = np.zeros(chunks * heads * (rank + 2), np.float32), np.zeros((heads, rank), np.float32)
    attention = sized(
        Attention, num_tokens=1, num_heads=heads, kv_rank=rank, rope_dim=width - rank, softmax_scale=SCALE,
        cache_bf16=bf16, cache=stored.ctypes.data, row_numbers=cache.size, row_of_token=row.ctypes.data,
        position_of_token=position.ctypes.data, query_rope=rope.ctypes.data, query=query.ctypes.data,
        query_stride=rank, partial=partial.ctypes.data, max_chunks=chunks, mixed=mixed.ctypes.data, mixed_stride=rank,
        attend=attend_address(isa, bf16),
    )  # fmt: skip
    ops = Ops(1, isa)
    for part in ("attend", "merge"):
        ops.attention(attention, part=part)
    ops.run(None)
    return mixed


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("damage", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["query", "rope", "key", "key rope"])
def test_what_is_no_number_stays_none(isa, bf16, damage, where):
    """In one head, or in one position of a late chunk; other heads keep theirs to the bit."""
    draw = np.random.default_rng(len(where))
    heads, rank, rope_dim, length = 6, 40, 6, 600
    query, rope = np.abs(draw.standard_normal((2, heads, rank), np.float32))
    rope = np.ascontiguousarray(rope[:, :rope_dim])
    cache = np.abs(draw.standard_normal((length, rank + rope_dim), np.float32))
    sound = mixed_of(isa, bf16, query, rope, cache)
    assert np.isfinite(sound).all()
    damaged = {"query": query, "rope": rope, "key": cache, "key rope": cache}[where]
    damaged[4 if damaged is not cache else draw.integers(512, length), -1 if where == "key rope" else 3] = damage
    got = mixed_of(isa, bf16, query, rope, cache)
    if damaged is cache:
        assert np.isnan(got).all()
    else:
        assert np.isnan(got[4]).all()
        np.testing.assert_array_equal(np.delete(got, 4, 0), np.delete(sound, 4, 0))
