"""Packed matrices against float64, every format and native ISA, alone and on a pool."""

from __future__ import annotations

import numpy as np
import pytest

from moelab.kernels import ACTIVATIONS_OF_FORMAT, PackedLinear, Pool, bf16_to_float32, float32_to_bf16, isa_table
from moelab.kernels import linear as module
from moelab.kernels.layout import unpack_int4
from moelab.kernels.quantise import quantise_int4, quantise_int8
from moelab.kernels.reference import reference_activations, relative_error
from tests.kernels.random_experts import carried_as

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
MODES = [(f, a) for f, activations in ACTIVATIONS_OF_FORMAT.items() for a in activations]
KERNELS = [(isa, f, a) for isa in NATIVE for f, a in MODES if (isa, f) != ("amx", "float32")]
TOLERANCE = {"f32": 2e-6, "bf16": 1e-5, "int8": 2e-6}  # of the kernel: the weights below are what it really has


def real_weights(weights, weight_format):
    """float64 of what the quantised matrix stands for."""
    if weight_format == "float32":
        return weights.astype(float)
    if weight_format == "bf16":
        return bf16_to_float32(float32_to_bf16(weights)).astype(float)
    if weight_format == "int8_g32":
        q, scale = quantise_int8(weights)
        numbers = q.astype(float)
    else:
        packed, scale = quantise_int4(weights)
        columns = np.arange(weights.shape[1])
        numbers = ((packed.view(np.uint32)[:, columns // 8] >> (4 * (columns % 8)).astype(np.uint32)) & 15) - 8.0
    return numbers * np.repeat(bf16_to_float32(scale).astype(float), 32, axis=1)[:, : weights.shape[1]]


@pytest.mark.parametrize(("isa", "weight_format", "activation"), KERNELS)
def test_matches_float64(isa, weight_format, activation, monkeypatch):
    monkeypatch.setattr(module, "ALONE_BYTES", {"native": 0})
    rng = np.random.default_rng(3)
    with Pool() as pool:
        for rows, columns, num_tokens in ((1, 1, 1), (70, 33, 3), (256, 320, 1), (33, 500, 40), (16, 64, 2)):
            weights = rng.standard_normal((rows, columns)).astype(np.float32)
            x = rng.standard_normal((num_tokens, columns)).astype(np.float32)
            alone = PackedLinear(weights, weight_format, isa, activation).forward(x).copy()
            packed = PackedLinear(weights, weight_format, isa, activation, pool)
            numbers = real_weights(weights, weight_format)
            if isa == "amx" and activation == "bf16":  # tiles of bf16 have the scale in the weights (docs/amx.md)
                numbers = reference_activations(numbers, "bf16")
            truth = reference_activations(x, carried_as(isa, weight_format, activation))[:, :columns] @ numbers.T
            assert relative_error(alone, truth) < TOLERANCE[activation], (rows, columns, num_tokens)
            for _ in range(2):
                np.testing.assert_array_equal(packed.forward(x), alone)
            if (isa, weight_format) != ("amx+avx512", "bf16"):
                np.testing.assert_array_equal(packed.forward(x[:1]), alone[:1])
            else:  # one token is AVX-512's, which sums in another order
                assert relative_error(packed.forward(x[:1]), alone[:1]) < 1e-5
            assert packed.bytes_read == 3 * packed.num_bytes
            assert packed.forward(x[:0]).shape == (0, rows)


@pytest.mark.parametrize("isa", NATIVE)
def test_several_matrices_with_their_own_inputs(isa, monkeypatch):
    monkeypatch.setattr(module, "ALONE_BYTES", {"native": 0})
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((7, 40, 96)).astype(np.float32)
    with Pool() as pool:
        together = PackedLinear(weights, "int8_g32", isa, pool=pool)
        for num_tokens in (1, 5, 1):
            x = rng.standard_normal((7, num_tokens, 96)).astype(np.float32)
            each = [PackedLinear(w, "int8_g32", isa).forward(rows).copy() for w, rows in zip(weights, x, strict=True)]
            np.testing.assert_array_equal(together.forward(x), np.stack(each))
        with pytest.raises(ValueError, match=r"expected x \[7, T, 96\]; got \[6, 1, 96\]"):
            together.forward(x[:6])


def test_int4_uses_all_steps_and_the_nearest():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((20, 100)).astype(np.float32)
    weights[3] = 0
    packed, scale = quantise_int4(weights)
    assert packed.shape == (20, 13)
    steps = np.repeat(np.abs(bf16_to_float32(scale)).astype(float), 32, axis=1)[:, :100]
    error = np.abs(real_weights(weights, "int4_g32") - weights)
    # Half a step; a whole one where a number as large as the largest, but of the other sign, meets the last step 7.
    assert (error <= steps * (1 + 8 * 2.0**-8) + 1e-30).all()
    assert (error <= steps * 0.55 + 1e-30).mean() > 0.97
    assert not error[3].any()
    tiles = PackedLinear(weights, "int4_g32").tiles
    back, back_scale = unpack_int4(tiles, 20, 100)
    np.testing.assert_array_equal(back_scale, scale)
    np.testing.assert_array_equal(back[:, :12], packed[:, :12])


def test_wrong_input_names_what_was_expected():
    weights = np.ones((4, 64), np.float32)
    with pytest.raises(ValueError, match=r"expected float32 \[R, C\] or \[M, R, C\]; got \[4\]"):
        PackedLinear(weights[:, 0], "int8_g32")
    with pytest.raises(ValueError, match="expected one of int8, bf16; got 'f32'"):
        PackedLinear(weights, "int8_g32", activation="f32")
    with pytest.raises(RuntimeError, match="need native kernels; got isa numba"):
        PackedLinear(weights, "int8_g32", isa="numba")
    with pytest.raises(ValueError, match=r"expected x \[T, 64\]; got \[1, 63\]"):
        PackedLinear(weights, "int8_g32").forward(np.ones((1, 63), np.float32))
