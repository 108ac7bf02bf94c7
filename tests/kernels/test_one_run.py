"""A kernel that reads an expert of one token in one run of memory (ONE_RUN) has the bits of rows that advance together.

Two equal tokens make the same expert one of two tokens, whose rows are cut into runs.
"""

from __future__ import annotations

import numpy as np
import pytest

from moelab.kernels import ExpertArena, ExpertLayout, Pool, RoutedExperts, isa_table
from moelab.kernels.generated import fill_expert

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa not in ("numba", "amx", "amx+avx512")]


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("size", [1, 17, 33, 1024, 1040, 2111])  # 32 groups of 32 rows are computed at once
def test_one_token_has_the_bits_of_two(isa, size):
    layout = ExpertLayout(100, size, "int8_g32")
    arena = ExpertArena(layout, 3)
    for expert in range(3):
        fill_expert(arena[expert], layout, seed=size + expert)
    rng = np.random.default_rng(size)
    x = rng.standard_normal((1, 100)).astype(np.float32)
    ids, gates = np.array([[2, 0]], np.int32), rng.random((1, 2)).astype(np.float32)
    with Pool() as pool:
        for workers in (None, pool):
            experts = RoutedExperts(layout, arena.addresses, isa, "int8", workers, owner=arena)
            alone = experts.forward(x, ids, gates).copy()
            twice = experts.forward(x.repeat(2, 0), ids.repeat(2, 0), gates.repeat(2, 0))
            assert np.abs(alone).max() > 0
            np.testing.assert_array_equal(twice, alone.repeat(2, 0))
