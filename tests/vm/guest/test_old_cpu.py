"""In the guest, on a CPU without AVX2: the generic kernels run, faster ones are refused by name and never executed."""

from __future__ import annotations

import numpy as np
import pytest
from random_experts import random_arena, random_step

from moelab.kernels import ExpertLayout, RoutedExperts, choose_isa, isa_table
from moelab.kernels.reference import TOLERANCES, reference_experts, relative_error


def test_table_and_refusals():
    supported = {row.isa: row.supported for row in isa_table()}
    assert supported["generic"]
    for isa in ("avx2", "avx512", "amx"):
        assert not supported[isa]
        with pytest.raises(ValueError, match=isa):
            choose_isa(isa)


@pytest.mark.parametrize(("weight_format", "activation"), sorted(TOLERANCES))
def test_generic_kernels_compute(weight_format, activation):
    layout = ExpertLayout(100, 70, weight_format)
    arena = random_arena(layout, 6, 1)
    x, ids, gate_weights = random_step(np.random.default_rng(2), 3, 2, 6, 100)
    experts = RoutedExperts(layout, arena.addresses, isa="generic", activation=activation, owner=arena)
    expected = reference_experts(x, ids, gate_weights, arena, layout)
    assert relative_error(experts.forward(x, ids, gate_weights), expected) < TOLERANCES[weight_format, activation]
