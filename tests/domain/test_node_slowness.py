"""What dispatch is told of the nodes: the plan's rates before the machine's before none, and who said them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.machine import Machine, NumaNode
from moelab.domain.node_slowness import node_slowness, slowness_of_machine
from moelab.domain.plan import Placements, Plan, PlanModel, TierFormat

RATES = st.floats(0.1, 1000)


def plan_of(num_nodes, rates=None):
    names = tuple(f"node{n}" for n in range(num_nodes))
    return Plan(
        model=PlanModel(name="toy", model_type="x", num_layers=1, num_experts=4, top_k=2),
        tiers=names, placements=Placements.whole(0, np.arange(4), np.arange(4) % num_nodes, 1), node_rates=rates,
        format_of_tier=dict.fromkeys(names, TierFormat(weight_format="f32", expert_bytes=(1,))),
    )  # fmt: skip


def machine_of(rates):
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=1, read_gb_per_s={} if rate is None else {1: rate})
        for n, rate in enumerate(rates)
    )
    return Machine(name="uneven", source="preset", nodes=nodes)


@settings(max_examples=50, deadline=None)
@given(st.lists(RATES, min_size=2, max_size=6), st.lists(RATES, min_size=2, max_size=6))
def test_the_plan_comes_first(mine, others):
    """Twin: seconds of 1 GB on a node over those on the first, one by one."""
    num_nodes = len(mine)
    told = node_slowness(plan_of(num_nodes, tuple(mine)), machine_of(others), num_nodes)
    assert told.source == "the plan's node_rates"
    assert told.said == pytest.approx([(1 / rate) / (1 / mine[0]) for rate in mine])
    silent = node_slowness(plan_of(num_nodes), machine_of(others), num_nodes)
    if len(others) == num_nodes:
        assert silent.source == "read rates of uneven"
        assert silent.said == pytest.approx([others[0] / rate for rate in others])
        assert silent.said == slowness_of_machine(machine_of(others), num_nodes).said
    else:
        assert silent.said is None
        assert "neither the plan nor machine uneven says rates of" in silent.source
        assert silent.of_nodes(num_nodes).tolist() == [1.0] * num_nodes


@settings(deadline=None)
@given(st.integers(2, 6), RATES)
def test_equal_rates_tell_dispatch_exactly_what_none_do(num_nodes, rate):
    said = node_slowness(plan_of(num_nodes, (rate,) * num_nodes), None, num_nodes).of_nodes(num_nodes)
    nobody = node_slowness(plan_of(num_nodes), None, num_nodes)
    assert nobody.source == "equal: nobody said rates of the nodes"
    np.testing.assert_array_equal(said, nobody.of_nodes(num_nodes))


def test_other_numbers_of_nodes():
    assert node_slowness(plan_of(1), machine_of([5.0]), 1).said is None
    assert node_slowness(plan_of(2, (4.0, 1.0)), None, 3).said == (1.0, 4.0, 1.0)  # a third node holds nothing
    assert node_slowness(plan_of(2), machine_of([1.0, None]), 2).said is None
