"""Packing: round trips, the order of bytes, and the packing of compressed-tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.kernels import ExpertLayout, bf16_to_float32, float32_to_bf16
from moelab.kernels.layout import pack
from moelab.kernels.quantise import quantise_int8
from moelab.kernels.reference import unpack_expert
from tests.kernels.random_experts import random_projection

sizes = st.tuples(st.integers(1, 150), st.integers(1, 150))


def expected_bytes(rows: int, columns: int, tile_bytes: int) -> int:
    return -(-rows // 16) * -(-columns // 64) * tile_bytes


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from(["float32", "bf16", "int4_g32", "int8_g32"]), st.integers(0, 2**32))
def test_round_trip(shape, weight_format, seed):
    layout = ExpertLayout(*shape, weight_format)
    rng = np.random.default_rng(seed)
    sources = [random_projection(rng, s, weight_format) for s in layout.shapes]
    block = np.full(layout.expert_bytes, 0xAA, np.uint8)
    layout.pack_expert(block, *sources)
    assert layout.expert_bytes == sum(expected_bytes(*s, layout.tile_bytes) for s in layout.shapes)
    for (_, columns), source, back in zip(layout.shapes, sources, layout.unpack_expert(block), strict=True):
        if weight_format == "int4_g32":
            keep = np.full(-(-columns // 8), 0xFFFFFFFF, np.uint32)
            if columns % 8:
                keep[-1] = (1 << 4 * (columns % 8)) - 1
            expected = (source[0].view(np.uint32) & keep) | (np.uint32(0x88888888) & ~keep)
            np.testing.assert_array_equal(back[0].view(np.uint32), expected)
            np.testing.assert_array_equal(back[1], source[1])
        elif weight_format == "int8_g32":
            np.testing.assert_array_equal(back[0], source[0])
            np.testing.assert_array_equal(back[1], source[1])
        else:
            np.testing.assert_array_equal(back, source)


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(0, 2**32))
def test_int4_equals_compressed_tensors(shape, seed):
    """Packed by the package, laid out by us, read by the reference: the numbers come back."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers", reason="compressed-tensors is not installed"
    )
    layout = ExpertLayout(*shape, "int4_g32")
    rng = np.random.default_rng(seed)
    q = [rng.integers(-8, 8, s) for s in layout.shapes]
    q[0][0, 0] = -8
    scales = [float32_to_bf16(rng.uniform(0.01, 1, (r, -(-c // 32))).astype(np.float32)) for r, c in layout.shapes]
    packed = [helpers.pack_to_int32(torch.from_numpy(values.astype(np.int8)), 4).numpy() for values in q]
    block = np.zeros(layout.expert_bytes, np.uint8)
    layout.pack_expert(block, *zip(packed, scales, strict=True))
    for values, scale, weights in zip(q, scales, unpack_expert(block, layout), strict=True):
        expected = values * np.repeat(bf16_to_float32(scale).astype(float), 32, axis=1)[:, : values.shape[1]]
        np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize("weight_format", ["float32", "bf16"])
def test_reference_reads_what_was_packed(weight_format):
    layout = ExpertLayout(70, 33, weight_format)
    rng = np.random.default_rng(0)
    sources = [random_projection(rng, s, weight_format) for s in layout.shapes]
    block = np.zeros(layout.expert_bytes, np.uint8)
    layout.pack_expert(block, *sources)
    for source, weights in zip(sources, unpack_expert(block, layout), strict=True):
        np.testing.assert_array_equal(weights, bf16_to_float32(source) if weight_format == "bf16" else source)


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(0, 2**32))
def test_quantise_int8_is_the_nearest_step(shape, seed):
    rng = np.random.default_rng(seed)
    weights = (rng.standard_normal(shape) * rng.choice([0, 1e-3, 1, 1e3], (shape[0], 1))).astype(np.float32)
    q, scale = quantise_int8(weights)
    steps = np.repeat(bf16_to_float32(scale).astype(float), 32, axis=1)[:, : shape[1]]
    # Half a step, and what the rounding of the scale to 8 bits takes from the largest number of a group.
    assert (np.abs(q * steps - weights) <= steps * (0.5 + 127 * 2.0**-9) + 1e-30).all()
    assert np.abs(q.astype(int)).max(initial=0) <= 127


def test_k2_expert_size():
    layout = ExpertLayout(7168, 2048, "int4_g32")
    assert layout.expert_bytes == 24_772_608
    assert layout.bits_per_weight == 4.5
    assert layout.offsets == (0, 8_257_536, 16_515_072)


def test_bytes_of_one_tile():
    """The words of the docstring, by hand: line, byte and nibble of a few columns."""
    packed = np.zeros((16, 8), np.uint32)
    packed[3, 1] = 0xA << (4 * 2)  # row 3, column 10 = 8 * 1 + 2: q = 2
    packed[5, 7] = 0xF << (4 * 5)  # row 5, column 61 = 8 * 7 + 4 + 1: q = 7
    scale = np.arange(32, dtype=np.uint16).reshape(16, 2)
    tile = np.zeros(576, np.uint8)
    pack(tile, (packed.view(np.int32), scale), 16, 64, "int4_g32")
    assert tile[1 * 64 + 4 * 3 + 2] == 0x0A
    assert tile[7 * 64 + 4 * 5 + 1] == 0xF0
    np.testing.assert_array_equal(tile[512:].view(np.uint16), np.concatenate([scale[:, 0], scale[:, 1]]))


def test_bf16_rounds_to_even_and_keeps_nan():
    x = np.array([1.0, 1.00390625, 1.01171875, np.inf, -np.inf, np.nan, 3.3961775e38], np.float32)
    back = bf16_to_float32(float32_to_bf16(x))
    np.testing.assert_array_equal(back[:5], np.array([1.0, 1.0, 1.015625, np.inf, -np.inf], np.float32))
    assert np.isnan(back[5])
    assert np.isinf(back[6])


def test_wrong_input_names_what_was_expected():
    with pytest.raises(ValueError, match="expected one of float32, bf16, int4_g32, int8_g32; got 'int8'"):
        ExpertLayout(64, 64, "int8")
    with pytest.raises(ValueError, match="expected positive"):
        ExpertLayout(0, 64, "bf16")
    layout = ExpertLayout(64, 32, "bf16")
    block = np.zeros(layout.expert_bytes, np.uint8)
    with pytest.raises(ValueError, match="expected uint16"):
        layout.pack_expert(block, *[np.zeros(s, np.float32) for s in layout.shapes])
    with pytest.raises(ValueError, match="expert block"):
        layout.pack_expert(block[:-1], *[np.zeros(s, np.uint16) for s in layout.shapes])
