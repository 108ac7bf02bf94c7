"""Planning by measured time: entries against the objective and a naive twin, the price of cuts, what is chosen."""

import numpy as np
import pytest

from moelab.domain.expert_times import BusyNodes, ExpertTimes
from moelab.domain.machine import Machine, NumaNode
from moelab.planner import PLANNERS
from moelab.planner.node_plan import masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.predicted_time import predicted_layer_steps_s, predicted_ms_per_step
from moelab.planner.step_entries import step_entries
from moelab.planner.step_maximum import CUT, step_maxima
from tests.seeded_traces import seeded_trace

SHAPE = {"moe_intermediate_size": 256}
QUICK = {"held_out": 0.25, "seed": 1}


def machine(num_nodes, *, piece=1.0, share=1.0, layer_s=0.0, hidden=None):
    trace = seeded_trace(0)
    times = ExpertTimes(
        kernel="generic/int4_g32/int8", hidden_size=hidden or trace.header.hidden_size or 1, intermediate_size=256,
        expert_bytes=1000, workers_of_node=1, layer_s=layer_s, token_s=0.0, expert_s={1: 1e-3, 2: 2e-3},
        piece_factor={2: piece, 4: piece}, read_gb_per_s=1e6,
        busy={n: BusyNodes(read_gb_per_s=1e6, kernel_share=share) for n in range(2, num_nodes + 1)}, residual=0.0,
        num_calls=1,
    )  # fmt: skip
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=10**9, read_gb_per_s={1: 10.0}) for n in range(num_nodes)
    )
    return Machine(name="m", source="calibration", date="2026-01-01", nodes=nodes, expert_times=(times,))


def trace_of(seed, **options):
    trace = seeded_trace(seed, num_requests=20, decode_tokens=8, **options)
    header = trace.header.model_copy(update={"hidden_size": 64})
    return type(trace)(header, trace.experts, trace.gate_weights, trace.tokens)


@pytest.mark.parametrize("num_nodes", [2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_entries_give_the_objective(seed, num_nodes):
    """With equal nodes, no overhead and no contention the time of a layer-step is the objective times one expert."""
    trace = trace_of(seed, num_experts=12)
    m = machine(num_nodes, hidden=64)
    problem = node_problem(trace, nodes=num_nodes, machine=m, **SHAPE, **QUICK)
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 1 << num_nodes, problem.shape)
    entries = step_entries(problem.test, masks, problem.times, problem.piece_units)
    loads = np.zeros((problem.test.num_layer_steps, num_nodes))
    np.add.at(loads, (entries.step, entries.node), entries.part)
    assert loads.max(axis=1) == pytest.approx(step_maxima(problem.test, masks, problem.times), rel=1e-4)
    whole = np.bincount(entries.step, entries.part, problem.test.num_layer_steps)
    assert whole == pytest.approx(problem.test.sizes, rel=1e-4)  # every expert once, whatever its copies
    held = masks.ravel()[entries.key] >> entries.node & 1
    assert ((held == 1) | (entries.part < 1)).all()
    seconds = predicted_layer_steps_s(problem, problem.test, masks, m.expert_times[0])
    per_expert = m.expert_times[0].expert_s[1] * (1 + problem.test.tokens_of_expert - 1)
    assert seconds == pytest.approx(per_expert * loads.max(axis=1), rel=1e-6)


def test_price_of_cuts_comes_from_the_machine():
    trace = trace_of(3)
    dear = node_problem(trace, nodes=2, machine=machine(2, piece=1.3, hidden=64), **SHAPE)
    assert dear.cut_price.slice_factor == pytest.approx(1.3)
    assert "measured: generic" in dear.cut_price.source
    assert dear.times.piece_sizes.sum() == pytest.approx(1.3 * 2**20, rel=1e-5)
    for measured, price in ((0.98, 1.0), (0.9, 0.9), (1.004, 1.004)):  # cheaper by less than two runs differ: as dear
        near = node_problem(trace, nodes=2, machine=machine(2, piece=measured, hidden=64), **SHAPE)
        assert near.cut_price.slice_factor == pytest.approx(price)
    unknown = node_problem(trace, nodes=2, machine=machine(2, piece=1.3, hidden=128), **SHAPE)
    assert unknown.cut_price.slice_factor == 1.0
    assert "not measured" in unknown.cut_price.source


@pytest.mark.parametrize(("piece", "kinds"), [(1.0, {"row_split"}), (3.0, {"anneal", "coact", "split_some"})])
def test_chooses_cuts_where_they_are_cheap_and_whole_experts_where_they_are_dear(piece, kinds):
    trace = trace_of(5, num_experts=16, top_k=3)
    m = machine(2, piece=piece, hidden=64)
    plan = PLANNERS["fastest"](trace, nodes=2, machine=m, **SHAPE, **QUICK)
    assert plan.planner["name"] == "fastest"
    assert plan.planner["chosen"].split()[0] in kinds
    assert ((masks_of_plan(plan) == CUT).mean() == 0) == (piece > 1)
    predicted = plan.prediction["planning_ms_per_step"]
    assert predicted[plan.planner["chosen"]] == min(predicted.values())
    hasty = PLANNERS["fastest"](trace, nodes=2, machine=m, most_visits=1000, **SHAPE, **QUICK)
    assert hasty.prediction["planning_ms_per_step"].keys() == predicted.keys()
    problem = node_problem(trace, nodes=2, machine=m, **SHAPE, **QUICK)
    expected = predicted_ms_per_step(problem, masks_of_plan(plan))
    assert plan.prediction["predicted_ms_per_step"] == pytest.approx(expected)


@pytest.mark.parametrize("rates", [(10.0, 11.3), (11.9, 10.0)])
def test_nodes_of_uneven_rates_may_be_cut(rates):
    """Eight units do not divide as the rates do: more on a node than its share, which no one said in bytes."""
    trace = trace_of(5, num_experts=16, top_k=3)
    m = machine(2, hidden=64)
    nodes = tuple(n.model_copy(update={"read_gb_per_s": {1: rate}}) for n, rate in zip(m.nodes, rates, strict=True))
    m = m.model_copy(update={"nodes": nodes})
    shared = {"nodes": 2, "machine": m, "most_visits": 1000, **SHAPE, **QUICK}
    over = []
    for extra in (0.0, 0.01, 0.5):
        plan = PLANNERS["fastest"](trace, extra_memory=extra, **shared)
        assert plan.planner["chosen"] == "row_split"
        problem = node_problem(trace, nodes=2, machine=m, extra_memory=extra, **SHAPE, **QUICK)
        over.append(bool((problem.used(masks_of_plan(plan)) > problem.budget).any()))
    assert over == [True, True, False]
    size = 16 * trace.header.num_layers * trace.header.expert_bytes[0]
    said = PLANNERS["fastest"](trace, node_bytes=[size, size * 2 // 5], **shared)
    assert "row_split" not in said.prediction["planning_ms_per_step"], "the bytes of a node were said"


@pytest.mark.parametrize("fast_rates", [None, [50.0]])
@pytest.mark.parametrize("hidden", [64, 128])
def test_a_time_beside_fast_tiers_says_whether_theirs_is_in_it(fast_rates, hidden):
    """By calibrated times it never is; by the objective (another shape was calibrated) where their rate is known."""
    m = machine(2, hidden=hidden)
    options = {"nodes": 2, "machine": m, "fast_slots": [4], "fast_rates": fast_rates, **SHAPE, **QUICK}
    by = PLANNERS["joint"](trace_of(5), moves_per_expert=20, **options).prediction["predicted_by"]
    assert by.endswith("fast tiers by their rates" if fast_rates and hidden == 128 else "taken as infinitely fast")
    assert by.startswith("generic/" if hidden == 64 else "objective x mean bytes of an expert, read rates")
    without = {name: value for name, value in options.items() if not name.startswith("fast_")}
    assert "fast" not in PLANNERS["round_robin"](trace_of(5), **without).prediction["predicted_by"]


def test_the_choice_knows_the_nodes():
    """A second node at a third of the rate: the time of a plan is the slower of the two, expert by expert."""
    trace = trace_of(5, num_experts=16, top_k=3)
    m = machine(2, hidden=64)
    nodes = (m.nodes[0], m.nodes[1].model_copy(update={"read_gb_per_s": {1: 10 / 3}}))
    m = m.model_copy(update={"nodes": nodes})
    problem = node_problem(trace, nodes=2, machine=m, **SHAPE, **QUICK)
    masks = np.tile(1 << np.arange(16) % 2, (problem.header.num_layers, 1))
    steps, expected = problem.test, []
    for begin, end in zip(steps.offsets[:-1].tolist(), steps.offsets[1:].tolist(), strict=True):
        of_node = [0, 0]
        for key in steps.keys[begin:end].tolist():
            of_node[key % 16 % 2] += 1
        expected.append(1e-3 * steps.tokens_of_expert * max(of_node[0], 3 * of_node[1]))
    seconds = np.mean(expected) * problem.header.num_layers
    assert predicted_ms_per_step(problem, masks) == pytest.approx(1e3 * seconds, rel=1e-4)


def test_the_held_out_half_has_no_part_in_the_choice():
    """Other tokens there, all of a batch alike, so that an expert has more of them: predictions to choose by stay."""
    trace = trace_of(9, num_experts=16, batch=4)
    options = {"nodes": 2, "machine": machine(2, hidden=64), "phase": "decode", "most_visits": 1000, **SHAPE, **QUICK}
    plan = PLANNERS["fastest"](trace, **options)
    experts = trace.experts.copy()
    experts[np.isin(trace.tokens.request, plan.planner["held_out_requests"])] = [0, 1, 2]
    other = type(trace)(trace.header, experts, trace.gate_weights, trace.tokens)
    again = PLANNERS["fastest"](other, **options)
    assert again.prediction["planning_ms_per_step"] == plan.prediction["planning_ms_per_step"]
    assert masks_of_plan(again).tolist() == masks_of_plan(plan).tolist()
    before, after = (node_problem(each, **{k: v for k, v in options.items() if k != "most_visits"})
                     for each in (trace, other))  # fmt: skip
    assert after.train.tokens_of_expert == before.train.tokens_of_expert
    assert after.test.tokens_of_expert == pytest.approx(4)
    assert 1 < before.test.tokens_of_expert < 4


def test_without_times_it_says_what_to_run():
    trace = trace_of(6)
    with pytest.raises(ValueError, match="moelab calibrate --expert-shape 64x256"):
        PLANNERS["fastest"](trace, nodes=2, machine=machine(2, hidden=32), **SHAPE)


def test_more_nodes_than_the_machine_has_are_composed():
    """No contention then: twice the work at once, which the calibrated nodes would feel, changes nothing."""
    trace = trace_of(7)
    free, shared = (machine(2, share=share, hidden=64) for share in (1.0, 0.5))
    for m, name in ((free, "free"), (shared, "shared")):
        plan = PLANNERS["round_robin"](trace, nodes=3, machine=m, **SHAPE, **QUICK)
        assert plan.prediction["predicted_by"].endswith("nodes composed"), name
    three = [PLANNERS["round_robin"](trace, nodes=3, machine=m, **SHAPE, **QUICK).prediction for m in (free, shared)]
    assert three[0]["predicted_ms_per_step"] == pytest.approx(three[1]["predicted_ms_per_step"])
    two = [PLANNERS["round_robin"](trace, nodes=2, machine=m, **SHAPE, **QUICK).prediction for m in (free, shared)]
    assert two[1]["predicted_ms_per_step"] > 1.2 * two[0]["predicted_ms_per_step"]
    assert not two[0]["predicted_by"].endswith("composed")
