"""Plans of closed form (mirror, row_split, random_nodes, interleave), and what a cut of rows costs or saves."""

import math

import pytest

from moelab.domain.machine import Machine, NumaNode
from moelab.planner import PLANNERS
from moelab.planner.interleave import remote_slowdown
from moelab.planner.node_problem import CutPrice
from tests.seeded_traces import seeded_trace


def test_mirror_and_row_split_closed_forms():
    trace = seeded_trace(1, num_requests=4, top_k=3)
    for nodes in (2, 3):
        mirror = PLANNERS["mirror"](trace, nodes=nodes)
        assert mirror.prediction["heldout_mean_max"] == mirror.prediction["bound"]
        assert mirror.prediction["extra_memory_used"] == nodes - 1
        cut = PLANNERS["row_split"](trace, nodes=nodes, moe_intermediate_size=32 * 6 * nodes)
        assert cut.prediction["heldout_mean_max"] == pytest.approx(cut.prediction["ideal"])
        assert cut.prediction["cut_price"] == "not measured: bytes alone"
        assert cut.num_units == 6 * nodes
    one = PLANNERS["mirror"](trace.phase(1), nodes=2)
    assert one.prediction["heldout_mean_max"] == 2  # ceil(3 / 2)


def test_row_split_with_a_measured_price_and_with_rows_that_do_not_divide():
    trace = seeded_trace(1, num_requests=4).phase(1)
    price = CutPrice(slice_factor=1.1, barrier=0.05, source="seen")
    plan = PLANNERS["row_split"](trace, nodes=2, cut_price=price, moe_intermediate_size=64)
    assert plan.prediction["heldout_mean_max"] == pytest.approx(1.5 * 1.1 + 0.05, rel=1e-5)
    assert plan.prediction["cut_price"] == "seen"
    odd = PLANNERS["row_split"](trace, nodes=2, moe_intermediate_size=96)  # three units: two and one
    assert odd.prediction["heldout_mean_max"] == pytest.approx(3 * 2 / 3)
    with pytest.raises(ValueError, match="to be cut over 3 nodes"):
        PLANNERS["row_split"](trace, nodes=3, moe_intermediate_size=64)


@pytest.mark.parametrize("price", [0.5, 0.9, 1.0, 1.2])
@pytest.mark.parametrize("rates", [[1.0, 1.0], [3.0, 1.0]])
@pytest.mark.parametrize("name", ["row_split", "split_some", "joint"])
def test_no_plan_is_below_its_bound_whatever_cuts_cost(name, rates, price):
    """Pieces cheaper than wholes make the bound smaller, dearer ones do not make it larger."""
    trace = seeded_trace(3, num_requests=12)
    options = {"nodes": 2, "node_rates": rates, "held_out": 0.5, "moe_intermediate_size": 32 * 8}
    options |= {"fast_slots": [4], "extra_memory": 0.2} if name == "joint" else {}
    plan = PLANNERS[name](trace, cut_price=CutPrice(slice_factor=price, source="seen"), **options)
    said = plan.prediction
    assert said["bound"] <= said["heldout_mean_max"] * (1 + 1e-5)  # parts are whole numbers of 2^-20
    assert said["gap"] >= -1e-5
    assert said["heldout_ratio_to_ideal"] >= 1 - 1e-5
    assert said["train_ratio_to_ideal"] >= 1 - 1e-5
    assert said["heldout_ratio_to_ideal"] == pytest.approx(said["heldout_mean_max"] / said["ideal"])
    if name == "row_split":
        whole = PLANNERS[name](trace, **options).prediction
        assert said["bound"] == pytest.approx(whole["bound"] * min(price, 1))
        assert said["heldout_mean_max"] == pytest.approx(whole["heldout_mean_max"] * price, rel=1e-5)


def test_split_some_cuts_what_it_may_and_beats_whole_experts():
    trace = seeded_trace(6, num_requests=10, num_experts=12, top_k=3).phase(1)
    whole = PLANNERS["mirror"](trace, nodes=2, held_out=0.5).prediction["heldout_mean_max"]
    for share in (0.25, 0.5, 1.0):
        plan = PLANNERS["split_some"](trace, nodes=2, cut_share=share, held_out=0.5, moves_per_expert=100)
        assert plan.prediction["num_cut"] <= share * 36
        assert max(plan.prediction["bytes_per_node"]) <= 18_000
    assert plan.prediction["heldout_mean_max"] < whole  # below ceil(3 / 2)
    with pytest.raises(ValueError, match="cut_share is 2"):
        PLANNERS["split_some"](trace, cut_share=2)


def test_random_nodes_is_hypergeometric():
    """Even loads: E[max] of a balanced deal, 2.61 for 12 experts, K = 4: sum over splits of max(a, 4 - a)."""
    trace = seeded_trace(3, num_experts=12, top_k=4, skew=0.0, persistence=0.0, num_requests=40, decode_tokens=40)
    expected = sum(math.comb(6, a) * math.comb(6, 4 - a) * max(a, 4 - a) for a in range(5)) / math.comb(12, 4)
    plan = PLANNERS["random_nodes"](trace.phase(1), nodes=2, held_out=0.5)
    assert plan.prediction["heldout_mean_max"] == pytest.approx(expected, rel=0.02)
    other = PLANNERS["random_nodes"](trace.phase(1), nodes=2, held_out=0.5, placement_seed=1)
    assert other.placements != plan.placements


def test_interleave_says_what_it_reads_from_afar():
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=2**40, read_gb_per_s={1: 200.0},
                 remote_read_gb_per_s={f"node{1 - n}": 50.0})
        for n in range(2)
    )  # fmt: skip
    machine = Machine(name="paper", source="preset", nodes=nodes)
    assert remote_slowdown(machine, 2) == (1 + 4) / 2
    plan = PLANNERS["interleave"](seeded_trace(1), machine=machine)
    assert plan.prediction["remote_share"] == 0.5
    assert plan.prediction["remote_slowdown"] == 2.5
    assert plan.prediction["too_small"] == []
    cut = PLANNERS["row_split"](seeded_trace(1), machine=machine).prediction
    for name in ("heldout_mean_max", "train_mean_max", "heldout_ratio_to_ideal", "predicted_ms_per_step"):
        assert plan.prediction[name] == pytest.approx(2.5 * cut[name])
    assert plan.prediction["gap"] == pytest.approx(1.5)
    assert plan.prediction["gain_over"]["row_split"] == pytest.approx(1 / 2.5 - 1)
    assert plan.prediction["gain_over"]["interleave"] == pytest.approx(0)
    assert cut["gain_over"]["interleave"] == pytest.approx(1.5)
    small = machine.model_copy(update={"nodes": tuple(n.model_copy(update={"memory_bytes": 9_000}) for n in nodes)})
    assert PLANNERS["interleave"](seeded_trace(1), machine=small).prediction["too_small"] == ["node0", "node1"]
    milliseconds = plan.prediction["heldout_mean_max"] * 1000 / 200e9 * 3 * 1e3
    assert plan.prediction["predicted_ms_per_step"] == pytest.approx(milliseconds)
    local = tuple(node.model_copy(update={"remote_read_gb_per_s": {}}) for node in nodes)
    no_rates = machine.model_copy(update={"nodes": local})
    unknown = PLANNERS["interleave"](seeded_trace(1), machine=no_rates).prediction
    assert "not measured" in unknown["remote_slowdown"]
    assert "predicted_ms_per_step" not in unknown
    assert unknown["gain_over"] is None
    others = PLANNERS["row_split"](seeded_trace(1), machine=no_rates).prediction
    assert "predicted_ms_per_step" in others
    assert "interleave" not in others["gain_over"]
