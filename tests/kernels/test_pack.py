"""The native packer against the Numba one, and rounding while packing against ``quantise``: the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.kernels import PackedLinear, Pool, bf16_to_float32, float32_to_bf16, native
from moelab.kernels import linear as linear_module
from moelab.kernels.job import TILE_ROWS, WEIGHT_FORMATS
from moelab.kernels.layout import ExpertLayout, pack, quantise_pack
from moelab.kernels.quantise import quantise_int4, quantise_int8
from tests.kernels.random_experts import random_projection

pytestmark = pytest.mark.skipif(native.library()[0] is None, reason="native kernels are not built")
sizes = st.tuples(st.integers(1, 150), st.integers(1, 200))
formats = st.sampled_from(WEIGHT_FORMATS)


def tiles_of(rows, columns, weight_format):
    return np.full(ExpertLayout(columns, rows, weight_format).projection_bytes(rows, columns), 0xAA, np.uint8)


def packed(source, shape, weight_format):
    tiles = tiles_of(*shape, weight_format)
    pack(tiles, source, *shape, weight_format)
    return tiles


@settings(max_examples=80, deadline=None)
@given(sizes, formats, st.integers(0, 2**32))
def test_native_equals_numba(shape, weight_format, seed):
    rng = np.random.default_rng(seed)
    source = random_projection(rng, shape, weight_format)
    if weight_format == "int4_g32":  # nibbles beyond the last column may hold anything
        source = (rng.integers(-(2**31), 2**31, source[0].shape, dtype=np.int32), source[1])
    ours = packed(source, shape, weight_format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: (None, "left out by the test"))
        np.testing.assert_array_equal(ours, packed(source, shape, weight_format))


@settings(max_examples=40, deadline=None)
@given(sizes, formats, st.integers(0, 2**32))
def test_strips_of_rows_are_the_whole(shape, weight_format, seed):
    rng = np.random.default_rng(seed)
    source = random_projection(rng, shape, weight_format)
    whole = packed(source, shape, weight_format)
    strips = []
    for first in range(0, shape[0], TILE_ROWS):
        part = tuple(array[first : first + TILE_ROWS] for array in source) if isinstance(source, tuple) else None
        part = source[first : first + TILE_ROWS] if part is None else part
        strips.append(packed(part, (min(TILE_ROWS, shape[0] - first), shape[1]), weight_format))
    np.testing.assert_array_equal(np.concatenate(strips), whole)


def random_weights(rng, shape):
    """Float32 of many sizes, with groups of zeros, ties of both signs, NaN, infinities and subnormal numbers."""
    weights = (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 6, (shape[0], 1))).astype(np.float32)
    for value in (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, 3e38):
        if rng.random() < 0.3:
            weights[rng.random(shape) < rng.choice([0.001, 0.02])] = value
    if rng.random() < 0.5:
        weights[rng.integers(shape[0])] = 0
    if rng.random() < 0.5:
        weights = np.round(weights)  # many ties of the largest, in both signs
    return weights


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:divide by zero")
@settings(max_examples=120, deadline=None)
@given(sizes, formats, st.booleans(), st.integers(0, 2**32))
def test_rounding_while_packing_equals_quantise(shape, weight_format, narrow, seed):
    rng = np.random.default_rng(seed)
    weights = random_weights(rng, shape)
    stored = float32_to_bf16(weights) if narrow else weights
    exact = bf16_to_float32(stored) if narrow else weights
    sources = {
        "int4_g32": quantise_int4, "int8_g32": quantise_int8, "float32": lambda x: x,
        "bf16": lambda x: stored if narrow else float32_to_bf16(x),
    }  # fmt: skip
    ours = tiles_of(*shape, weight_format)
    quantise_pack(ours, stored, weight_format)
    np.testing.assert_array_equal(ours, packed(sources[weight_format](exact), shape, weight_format))


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_linear_packed_by_all_workers_equals_one(weight_format, monkeypatch):
    monkeypatch.setattr(linear_module, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(linear_module, "STRIP_NUMBERS", 8_000)
    rng = np.random.default_rng(0)
    with Pool() as pool:
        for shape in ((333, 200), (1, 1), (5, 90, 70)):
            weights = rng.standard_normal(shape).astype(np.float32)
            together = PackedLinear(weights, weight_format, pool=pool)
            np.testing.assert_array_equal(together.tiles, PackedLinear(weights, weight_format).tiles)
            from_bits = PackedLinear(float32_to_bf16(weights), weight_format, pool=pool)
            exact = bf16_to_float32(float32_to_bf16(weights))
            np.testing.assert_array_equal(from_bits.tiles, PackedLinear(exact, weight_format).tiles)


def test_wrong_input_names_what_was_expected():
    with pytest.raises(ValueError, match=r"weights: expected float32 or uint16 \(bf16 bits\) \[R, C\]; got float64"):
        quantise_pack(np.zeros(576, np.uint8), np.zeros((16, 64)), "int4_g32")
    with pytest.raises(ValueError, match=r"tiles: expected uint8 \[1152\]; got uint8 \[576\]"):
        quantise_pack(np.zeros(576, np.uint8), np.zeros((17, 64), np.float32), "int4_g32")
