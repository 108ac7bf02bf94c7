"""simulate: accountings, phases, bytes, prediction, log across pages, and what it refuses."""

from importlib import import_module

import numpy as np
import pytest

import moelab
from moelab.cost_model.hybrid import Rates
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.plan import FastTier, Placements
from moelab.policies.requests import Requests
from moelab.simulator.simulate import home_bytes, simulate
from tests.seeded_traces import plan_for, seeded_trace, trace_of_sets


def machine(**changes):
    node = NumaNode(name="node0", cores=(0, 1), memory_bytes=2**30, read_gb_per_s={1: 10.0, 2: 20.0})
    return Machine(name="paper", source="preset", nodes=(node,), layer_overhead_s=1e-6, **changes)


def test_no_fast_tier_reads_everything_from_home():
    trace = seeded_trace(2, batch=2)
    result = simulate(trace, plan_for(trace))
    distinct = len(Requests.of_trace(trace).experts)
    assert result.hit_rate_per_routing == 0
    assert result.hit_rate_per_request == 0
    assert result.misses == distinct
    assert result.bytes_of_node == {"node0": 1000.0 * distinct}
    assert result.bytes_of_link == {}


def test_two_accountings_differ_where_tokens_share_an_expert():
    """One step of two tokens, {0,1} and {0,2}, expert 0 resident: 2 of 4 routings, 1 of 3 distinct."""
    trace = trace_of_sets([[0, 1], [0, 2]], num_experts=3)
    object.__setattr__(trace.tokens, "step", np.zeros(2, np.int64))
    result = simulate(trace, plan_for(trace, slots_per_layer=1, resident=[(0, 0)]))
    assert result.hit_rate_per_routing == 2 / 4
    assert result.hit_rate_per_request == 1 / 3
    assert result.reads_per_layer_step == 2
    assert result.num_layer_steps == 1


def test_phases_add_up_and_can_be_chosen():
    trace = seeded_trace(4, batch=2)
    plan = plan_for(trace, "lru", slots_per_layer=4)
    everything = simulate(trace, plan)
    prefill, decode = everything.of_phase("prefill"), simulate(trace, plan, phase="decode")
    for name in ("hits", "misses", "uploads", "evictions", "routings", "num_tokens", "num_layer_steps"):
        assert getattr(prefill, name) + getattr(decode, name) == getattr(everything, name)
    assert prefill.bytes_of_node["node0"] + decode.bytes_of_node["node0"] == everything.bytes_of_node["node0"]
    frame = everything.to_frame()
    assert set(frame.phase) == {"prefill", "decode"}
    assert frame.distinct_misses.sum() == everything.misses
    assert set(decode.to_frame().phase) == {"decode"}
    assert everything.hits + everything.misses == len(Requests.of_trace(trace).experts)
    with pytest.raises(ValueError, match="phase is 'warm', expected one of prefill, decode, mixed"):
        simulate(trace, plan, phase="warm")


def test_phase_that_does_not_occur_has_no_rates():
    trace = seeded_trace(4, prefill_tokens=0)
    result = simulate(trace, plan_for(trace), phase="prefill")
    assert result.hit_rate_per_routing is None
    assert result.reads_per_layer_step is None
    assert "none" in repr(result)


def test_bytes_are_misses_plus_the_source_of_every_copy():
    trace = seeded_trace(6, expert_bytes=(100, 200, 300))
    plan = plan_for(trace, "lru", slots_per_layer=4)
    result = simulate(trace, plan)
    by_layer = result.to_frame().groupby("layer")[["distinct_misses", "uploads"]].sum()
    size = np.array([100, 200, 300])
    assert result.bytes_of_link == {"fast0": float((by_layer.uploads * size).sum())}
    assert result.bytes_of_node == {"node0": float(((by_layer.uploads + by_layer.distinct_misses) * size).sum())}
    reads = (result.misses + result.uploads) / result.num_layer_steps
    assert result.reads_per_layer_step == reads


def test_prediction_is_bytes_over_rate_plus_overhead():
    trace = seeded_trace(6)
    result = simulate(trace, plan_for(trace), machine(), phase="decode", efficiency=0.5)
    seconds = result.bytes_of_node["node0"] / (20e9 * 0.5) + result.num_layer_steps * 1e-6
    assert result.prediction["predicted_ms_per_token"] == pytest.approx(1e3 * seconds / result.num_tokens)
    assert "predicted_tok_per_s" in result.summary()
    assert "fast_tier" not in result.prediction
    filled = simulate(trace, plan_for(trace, "lru", slots_per_layer=4), machine())
    assert filled.prediction["fast_tier"] == "taken as infinitely fast: machine paper has none"
    assert result.of_phase("prefill").prediction is None


def test_home_bytes_split_pieces_and_replicas():
    """Expert 0 whole on node0; expert 1 in halves on both nodes; expert 2 replicated on both."""
    trace = trace_of_sets([[0, 1], [2]], num_experts=3)
    plan = plan_for(trace, expert_bytes=(1000,))
    plan = plan.model_copy(
        update={
            "tiers": ("node0", "node1"),
            "placements": Placements(
                layer=(0,) * 5,
                expert=(0, 1, 1, 2, 2),
                start=(0, 0, 1, 0, 0),
                stop=(2, 1, 2, 2, 2),
                tier=(0, 0, 1, 0, 1),
            ),
            "format_of_tier": {t: plan.format_of_tier["node0"] for t in ("node0", "node1")},
        }
    )
    assert home_bytes(plan)[:, 0].tolist() == [[1000, 500, 500], [0, 500, 500]]
    result = simulate(trace, plan)
    # 0 whole and half of 1 on node0, half of 1 on node1; then 2 from node0, the lower of two equal copies.
    assert result.bytes_of_node == {"node0": 2500.0, "node1": 500.0}
    with pytest.raises(ValueError, match="plan uses node0, node1; machine paper has 1 nodes with read rates"):
        simulate(trace, plan, machine())
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=2**30, read_gb_per_s={1: rate})
        for n, rate in ((0, 10.0), (1, 40.0))
    )
    two = Machine(name="two", source="preset", nodes=nodes, layer_overhead_s=1e-6)
    said = simulate(trace, plan, two, efficiency=0.5)
    # Node 1 is four times as fast and takes expert 2: max(1500 / 10, 500 / 40), then 1000 / 40.
    assert said.bytes_of_node == {"node0": 1500.0, "node1": 1500.0}
    seconds = (150e-9 + 25e-9) / 0.5 + 2e-6
    assert said.prediction["predicted_ms_per_token"] == pytest.approx(1e3 * seconds / 2)
    assert said.prediction["max_over_mean_node"] == pytest.approx(2 * 2500 / 3000)


def test_log_over_several_pages_equals_one_page(monkeypatch):
    module = import_module("moelab.simulator.simulate")  # the package's attribute is the function
    trace = seeded_trace(8, num_requests=6)
    plan = plan_for(trace, "lru", slots_per_layer=4)
    whole = simulate(trace, plan, log=True)
    monkeypatch.setattr(module, "_LOG_ROWS", 3)
    monkeypatch.setattr(module, "_CHUNK", 7)
    pages = simulate(trace, plan, log=True)
    assert np.array_equal(whole.log, pages.log)
    assert whole.state == pages.state
    assert len(whole.log_frame()) == whole.uploads + whole.evictions
    with pytest.raises(ValueError, match="simulate with log=True"):
        simulate(trace, plan).log_frame()


def test_same_run_twice_is_identical_and_the_plan_is_not_touched():
    trace = seeded_trace(9)
    plan = plan_for(trace, "lru", slots=10, resident=[(0, 1), (2, 5)])
    before = plan.model_dump_json()
    first, second = simulate(trace, plan), simulate(trace, plan)
    assert first.state == second.state
    assert np.array_equal(first.counts, second.counts)
    assert plan.model_dump_json() == before


def test_recorded_scores_and_stale_gates_reach_the_policy():
    """A spy policy adds up what it is shown; the sums are those of the trace."""
    from moelab.policies import Policy
    from moelab.policies.compiled import compiled

    @compiled
    def spy(view):
        """Sums scores and counts stale experts; decides nothing."""
        view.float_state[0] += view.candidate_scores.sum()
        view.int_state[0] += len(view.stale_experts)

    def two_sums(setup):
        return np.zeros(1), np.zeros(1, np.int64)

    trace = seeded_trace(1, batch=2)
    num_tokens, num_layers, _ = trace.shape
    rng = np.random.default_rng(0)
    trace.extras["candidate_scores"] = rng.integers(0, 8, (num_tokens, num_layers, 12)).astype(np.float16)
    trace.extras["stale_gate_experts"] = trace.experts
    result = simulate(trace, plan_for(trace), policy=Policy("spy", spy, "none", {}, two_sums))
    requests = Requests.of_trace(trace)
    assert result.state.float_state[0] == trace.extras["candidate_scores"].sum(dtype=np.float64)
    assert result.state.int_state[0] == requests.set_sizes[:, 1:].sum()


def test_refusals_name_what_does_not_fit():
    trace = seeded_trace(1)
    other = plan_for(seeded_trace(1, num_layers=2))
    with pytest.raises(ValueError, match=r"plan is for seeded \(2 x 12\); trace is seeded \(3 x 12\)"):
        simulate(trace, other)
    plan = plan_for(trace, "lru", slots_per_layer=2)
    names = "expected one of static, kt_dynamic, fifo, random, lru, "
    with pytest.raises(ValueError, match=f"plan asks for policy clock9, {names}"):
        simulate(trace, plan_for(trace, "clock9", slots_per_layer=2))
    two = plan.model_copy(update={"fast_tiers": (*plan.fast_tiers, FastTier(tier="fast1", slots=3))})
    formats = {**plan.format_of_tier, "fast1": plan.format_of_tier["fast0"]}
    two = two.model_copy(update={"tiers": (*plan.tiers, "fast1"), "format_of_tier": formats})
    with pytest.raises(ValueError, match="mix capacity per layer with one global pool"):
        simulate(trace, two)
    blank = machine().model_copy(update={"nodes": (NumaNode(name="node0", cores=(0,), memory_bytes=1),)})
    with pytest.raises(ValueError, match="has no read rate"):
        simulate(trace, plan, blank)
    unknown = plan_for(trace, expert_bytes=(0, 0, 0))
    with pytest.raises(ValueError, match="nobody said the bytes of an expert"):
        simulate(trace, unknown, machine())


def test_results_show_themselves():
    trace = seeded_trace(1)
    result = simulate(trace, plan_for(trace, "lru", slots_per_layer=2))
    assert "hit_rate_per_request" in result._repr_html_()
    assert "synthetic" in repr(result)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (1000, 0, 1000)])
def test_bytes_that_nobody_said_are_unknown_not_zero(sizes):
    trace = seeded_trace(2)
    header = trace.header.model_copy(update={"expert_bytes": sizes})
    trace = type(trace)(header, trace.experts, trace.gate_weights, trace.tokens)
    for plan in (
        moelab.PLANNERS["frequency"](trace, slots_per_layer=4), moelab.PLANNERS["round_robin"](trace, nodes=2),
    ):  # fmt: skip
        result = simulate(trace, plan, progress=False)
        assert not result.knows_bytes
        assert result.summary()["bytes_of_node"].startswith("unknown")
        assert "bytes_of_node: unknown: nobody said the bytes of an expert" in repr(result)
        assert (result.summary()["bytes_of_link"] == {}) == (not result.tier_names)
    known = seeded_trace(2)
    assert simulate(known, moelab.PLANNERS["frequency"](known, slots_per_layer=4), progress=False).knows_bytes


def test_a_prediction_has_one_name_everywhere():
    trace = seeded_trace(3)
    plan = moelab.PLANNERS["frequency"](trace, slots_per_layer=4, machine=machine(), held_out=0)
    result = simulate(trace, plan, machine(), progress=False)
    assert result.prediction["predicted_ms_per_token"] == plan.prediction["predicted_ms_per_token"]
    assert simulate(trace, plan, progress=False).prediction is None
    sized = moelab.size("kimi-k2.6", "forge-moe-gen4")
    assert sized.prediction.tok_per_s == sized.to_dict()["predicted_tok_per_s"]


def test_time_of_several_tiers_is_what_the_machine_gives_or_refused():
    """By hand through `time` as by `simulate` with a machine; two fast tiers have no time, which was once silent."""
    trace = seeded_trace(0)
    rates = Rates(read_gb_per_s=10, efficiency=1, link_gb_per_s=5, fast_read_gb_per_s=100, layer_overhead_s=0)
    one = simulate(trace, moelab.PLANNERS["joint"](trace, nodes=2, fast_slots=[6]), progress=False)
    with pytest.raises(ValueError, match=r"node0, node1, expected node_gb_per_s with the read rate of each, got none"):
        one.time(rates)
    with pytest.raises(ValueError, match="got 3"):
        one.time(rates, [10.0] * 3)
    assert one.time(rates, [10.0, 5.0]).step_s.sum() > one.time(rates, [10.0, 10.0]).step_s.sum() > 0
    two = simulate(trace, moelab.PLANNERS["joint"](trace, nodes=1, fast_slots=[6, 5]), progress=False)
    with pytest.raises(ValueError, match="plan has fast tiers fast0, fast1; times are predicted beside one"):
        two.time(rates)
