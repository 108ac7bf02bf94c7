"""Quantised weights x activations of 16 bits: bits of a naive twin, the largest sums, and an error below bf16's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.kernels import ExpertArena, ExpertLayout, RoutedExperts, isa_table
from moelab.kernels.reference import reference_activations, reference_int16
from tests.kernels.amx import twin
from tests.kernels.int16_twin import quantise_int16
from tests.kernels.random_experts import random_step

ISAS = [row.isa for row in isa_table() if row.supported and row.isa not in ("numba", "amx")]
FORMATS = ["int4_g32", "int8_g32"]


def awkward(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Numbers over many magnitudes: groups with an outlier, with zeros, all zero, tiny and denormal ones."""
    x = rng.standard_normal(shape).astype(np.float32)
    for row in range(shape[0]):
        for first in range(0, shape[1], 32):
            group = x[row, first : first + 32]
            kind = rng.integers(8)
            if kind == 1:
                group[rng.integers(len(group), size=rng.integers(1, 5))] *= np.float32(10.0 ** rng.integers(1, 7))
            elif kind == 2:
                group[rng.random(len(group)) < 0.9] = 0
            elif kind == 3:
                group[:] = 0
            elif kind == 4:
                group *= np.float32(2.0 ** -rng.integers(95, 145))
            elif kind == 5:
                group *= np.float32(2.0 ** rng.integers(-40, 30))
    return x


@pytest.mark.parametrize("weight_format", FORMATS)
def test_bits_of_a_naive_twin(weight_format):
    """Every ISA, any number of tokens: kept groups and integer ones beside each other in one tile."""
    rng = np.random.default_rng(11)
    for hidden, intermediate, num_tokens in ((64, 32, 1), (100, 70, 2), (160, 48, 5), (33, 17, 3), (96, 112, 37)):
        layout = ExpertLayout(hidden, intermediate, weight_format)
        arena, experts = twin.random_experts(rng, layout, 3)
        x, ids, gates = random_step(rng, num_tokens, 2, 3, hidden)
        x = awkward(rng, x.shape)
        expected = twin.forward(x, ids, gates, experts, "int16")
        for isa in ISAS:
            y = RoutedExperts(layout, arena.addresses, isa, "bf16", owner=arena).forward(x, ids, gates)
            np.testing.assert_array_equal(y, expected, err_msg=f"{isa} {hidden} x {intermediate}, {num_tokens}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("weight_format", "q"), [("int4_g32", -8), ("int4_g32", 7), ("int8_g32", -128), ("int8_g32", 127)]
)
def test_largest_sums(isa, weight_format, q):
    """Every weight and every activation at its extreme, high bytes at +-127 and low bytes at their largest too."""
    layout = ExpertLayout(128, 64, weight_format)
    one = np.uint16(0x3F80)
    word = np.uint32(0x11111111 * (q + 8) if weight_format == "int4_g32" else 0).view(np.int32)
    sources = [
        (np.full((r, c // 8), word) if weight_format == "int4_g32" else np.full((r, c), q, np.int8),
         np.full((r, c // 32), one))
        for r, c in layout.shapes
    ]  # fmt: skip
    with ExpertArena(layout, 1) as arena:
        layout.pack_expert(arena[0], *sources)
        experts = RoutedExperts(layout, arena.addresses, isa, "bf16")
        for steps in (32639, 32512 + 127, 32385, 128, 127, -128, -129):
            x = np.full((1, 128), steps * 2.0**-24, np.float32)
            x[0, ::32] = np.copysign(32639 * 2.0**-24, steps)
            y = experts.forward(x, np.zeros((1, 1), np.uint16), np.ones((1, 1), np.float32))
            gate = q * float(x.astype(np.float64).sum())
            hidden = gate / (1 + np.exp(-gate)) * gate
            np.testing.assert_allclose(y, q * 64 * hidden, rtol=2e-5 if abs(steps) > 200 else 5e-3)
        del experts


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_expected_error_is_never_above_that_of_bf16(seed):
    """Zero weights at the largest eighth of a group, the worst for a common scale; elsewhere the weights are alike.

    Rounding is uniform: a twelfth of the square of a step, of the group's or of the number's own in bf16.
    """
    rng = np.random.default_rng(seed)
    x = awkward(rng, (8, 64))
    fixed, rounded = reference_int16(x), reference_activations(x, "bf16")
    for row in range(len(x)):
        for columns in (slice(0, 32), slice(32, 64)):
            group = x[row, columns]
            quantised = quantise_int16(group)
            if quantised is None:
                np.testing.assert_array_equal(fixed[row, columns], rounded[row, columns])
                continue
            q, scale = quantised
            np.testing.assert_array_equal(fixed[row, columns], q * float(scale))
            # The division, the product and the scale are rounded to float32: 3 * 2^-24 of 32639 steps.
            assert np.abs(fixed[row, columns] - group).max() <= 0.506 * float(scale)
            numbers = np.sort(np.abs(group[group != 0].astype(np.float64)))
            left = numbers[: len(numbers) - len(numbers) // 8]
            steps = np.exp2(np.floor(np.log2(left)) - 7)
            assert len(left) * float(scale) ** 2 <= (steps**2).sum()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_outliers_that_meet_zero_weights(isa, weight_format):
    """One number a million times the others of its group, its weights zero: as bf16, where int8 mode has nothing."""
    rng = np.random.default_rng(2)
    layout = ExpertLayout(64, 32, weight_format)
    arena, experts = twin.random_experts(rng, layout, 1)
    for matrix in experts[0][:2]:
        matrix.q[:, 7] = 0
    layout.pack_expert(arena[0], *(matrix.source(weight_format) for matrix in experts[0]))
    x = rng.standard_normal((1, 64)).astype(np.float32)
    step = np.zeros((1, 1), int), np.ones((1, 1), np.float32)
    without = x.copy()
    without[0, 7] = 0
    x[0, 7] = 1e6
    y, expected = (
        RoutedExperts(layout, arena.addresses, isa, "bf16").forward(numbers, *step).astype(np.float64)
        for numbers in (x, without)
    )
    lost = RoutedExperts(layout, arena.addresses, isa, "int8").forward(x, *step)
    assert np.linalg.norm(y - expected) <= 8e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(lost - expected) > 0.5 * np.linalg.norm(expected)
