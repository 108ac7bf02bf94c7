"""Placements from masks against a walk through them; what all plans say alike."""

import numpy as np
import pytest

from moelab.planner.placements import fingerprints_of, home_and_fast, num_units_of, per_layer, placements_of_masks
from tests.seeded_traces import seeded_trace


@pytest.mark.parametrize("seed", range(5))
def test_one_row_for_every_copy_and_piece_in_order(seed):
    rng = np.random.default_rng(seed)
    units = rng.integers(1, 5, 3)
    held = rng.integers(0, 16, (3, 7))  # 0 is cut over the three nodes; tier 3 is fast
    expected = []
    for layer, expert in np.ndindex(held.shape):
        for tier in range(4):
            if held[layer, expert] >> tier & 1:
                expected.append((layer, expert, 0, units.sum(), tier))
            elif held[layer, expert] == 0 and tier < 3:
                expected.append((layer, expert, units[:tier].sum(), units[: tier + 1].sum(), tier))
    got = placements_of_masks(held, 4, units).arrays()
    assert list(zip(*(got[name].tolist() for name in ("layer", "expert", "start", "stop", "tier")), strict=True)) == [
        tuple(map(int, row)) for row in expected
    ]


def test_homes_and_a_fast_tier():
    got = home_and_fast(2, 2, [(1, 0)], 96)
    assert (got.layer, got.expert, got.tier) == ((0, 0, 1, 1, 1), (0, 1, 0, 0, 1), (0, 0, 0, 1, 0))
    assert set(got.stop) == {num_units_of(96)} == {3}
    assert num_units_of(None) == 1
    assert len(home_and_fast(2, 2, [], None)) == 4


def test_fingerprints_and_numbers_of_layers():
    trace = seeded_trace(1)
    assert fingerprints_of(trace.header, None) == {}
    assert fingerprints_of(trace.header, trace.fingerprint()) == {"trace": trace.fingerprint()}
    assert per_layer("slots", 3, 2) == (3, 3)
    with pytest.raises(ValueError, match="expected one number or 2 of them"):
        per_layer("slots", [1, 2, 3], 2)
