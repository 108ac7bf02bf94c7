"""Every planner of nodes: budgets, held-out scores, the plan as a document; targets on captures."""

import itertools

import numpy as np
import pytest

from moelab.domain.plan import Plan
from moelab.planner import NODE_PLANNERS, PLANNERS
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import node_score
from moelab.planner.static_plan import split
from moelab.sources import open_source
from tests.planner.naive_nodes import sum_of_maxima
from tests.planner.node_plans import QUICK, masks_of
from tests.seeded_traces import seeded_trace
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

ALL = sorted(set(NODE_PLANNERS) - {"joint", "fastest"})


@pytest.mark.parametrize("options", [{"nodes": 2}, {"nodes": 3, "extra_memory": 0.25}], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_plan_is_what_it_says(name, options, tmp_path):
    trace = seeded_trace(4, num_requests=44, decode_tokens=6, num_experts=12)
    shape = {"moe_intermediate_size": 256}
    plan = PLANNERS[name](trace, held_out=0.25, seed=1, **options, **shape, **QUICK.get(name, {}))
    assert plan.planner["name"] == name
    says = plan.prediction
    assert says["scored_on"] == "held-out requests"
    problem = node_problem(trace, held_out=0.25, seed=1, **options, **shape)
    masks = masks_of(plan)
    _, test, _ = split(trace, held_out=0.25, seed=1)
    expected = sum_of_maxima(test, "step", masks, problem.times) / problem.test.num_layer_steps
    assert says["heldout_mean_max"] == pytest.approx(expected)
    assert says["heldout_ratio_to_ideal"] == pytest.approx(expected / says["ideal"])
    train, _, _ = split(trace, held_out=0.25, seed=1)
    on_train = sum_of_maxima(train, "step", masks, problem.times) / problem.train.num_layer_steps
    assert says["train_mean_max"] == pytest.approx(on_train)
    for part in ("heldout", "train"):
        low, high = says[f"{part}_mean_max_interval"]
        assert low <= says[f"{part}_mean_max"] <= high
    assert says["bound"] <= says["heldout_mean_max"] + 1e-9
    assert says["gap"] == pytest.approx(says["heldout_mean_max"] / says["bound"] - 1)
    used = np.zeros(options["nodes"])
    columns = plan.placements.arrays()
    np.add.at(used, columns["tier"], 1000 * (columns["stop"] - columns["start"]) / plan.num_units)
    assert says["bytes_per_node"] == pytest.approx(used, abs=12 * 3)  # pieces are rounded down to bytes
    if name != "mirror":
        assert says["extra_memory_bytes"] <= options.get("extra_memory", 0) * 36_000 + 1e-6
    theirs = says["baseline_mean_max"]["round_robin"]
    if name == "interleave":  # no remote rates: no gain is claimed
        assert says["gain_over"] is says["ties_with"] is None
        return
    assert says["gain_over"]["round_robin"] == pytest.approx(theirs / expected - 1)
    assert (name in says["ties_with"]) == (name in says["gain_over"] and name != "random_nodes")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").placements == plan.placements


@pytest.mark.parametrize("name", ["anneal", "replicate", "coact", "eplb"])
def test_copies_help_and_ours_lead_on_even_terms(name):
    trace = seeded_trace(7, num_requests=16, num_experts=16, top_k=4, decode_tokens=40)
    values = [
        PLANNERS[name](trace, nodes=2, extra_memory=share, held_out=0.5, **QUICK.get(name, {})).prediction[
            "heldout_mean_max"
        ]
        for share in (0, 0.125, 0.25, 0.5)
    ]
    assert values[0] > values[1] > values[2] > values[3]
    if name == "anneal":
        theirs = PLANNERS["eplb"](trace, nodes=2, extra_memory=0.25, held_out=0.5).prediction["heldout_mean_max"]
        assert values[2] < theirs


def test_layers_of_unequal_bytes_weigh_by_them():
    trace = seeded_trace(5, expert_bytes=(1000, 3000, 2000))
    plan = PLANNERS["anneal"](trace, nodes=2, extra_memory=0.2, moves_per_expert=200, held_out=0)
    problem = node_problem(trace, nodes=2, held_out=0)
    from moelab.planner.step_maximum import step_maxima

    maxima = step_maxima(problem.train, masks_of(plan), problem.times)
    weight = np.array([0.5, 1.5, 1.0])[problem.train.layer]
    assert plan.prediction["heldout_mean_max"] == pytest.approx((weight * maxima).mean())
    assert sum(plan.prediction["bytes_per_node"]) <= 1.2 * 12 * 6000 + 3000


def test_a_step_of_a_batch_counts_its_union():
    trace = seeded_trace(5, batch=4, num_requests=8)
    of_steps = PLANNERS["round_robin"](trace, nodes=2).prediction
    of_tokens = PLANNERS["round_robin"](trace, nodes=2, steps="token").prediction
    assert of_steps["heldout_mean_max"] > of_tokens["heldout_mean_max"]
    assert "each token its own step" in of_tokens["scored_on"]
    assert of_tokens["num_heldout_layer_steps"] > of_steps["num_heldout_layer_steps"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nodes": 0}, "got 0 nodes"),
        ({"nodes": 2, "extra_memory": 1.5}, "expected 0 to 1"),
        ({"nodes": 2, "node_rates": [1.0]}, "expected 2 numbers above 0"),
        ({"nodes": 2, "node_bytes": [10, 10]}, "that hold all experts"),
        ({"nodes": 2, "steps": "batch"}, "expected step"),
        ({"nodes": 2, "phase": "warm"}, "expected prefill or decode"),
        ({"nodes": 2, "held_out": 1.0}, "held_out is 1.0"),
    ],
)
def test_refusals(options, text):
    with pytest.raises(ValueError, match=text):
        PLANNERS["replicate"](seeded_trace(1), **options)


def test_one_request_and_nothing_held_out_say_so():
    trace = seeded_trace(1, num_requests=1)
    in_time = PLANNERS["replicate"](trace, nodes=2).prediction
    assert in_time["scored_on"] == "held-out steps (split in time)"
    assert in_time["heldout_mean_max_interval"] is in_time["train_mean_max_interval"] is None
    assert in_time["ties_with"] is None
    assert "in sample" in PLANNERS["replicate"](trace, nodes=2, held_out=0).prediction["scored_on"]


@needs_shared_traces
@pytest.mark.parametrize(
    ("folder", "share", "seed", "least", "most"),
    [
        ("gpt_oss_20b_fingerprint", 0.10, 0, 1.0, 1.085),
        ("gpt_oss_20b_fingerprint", 0.10, 1, 1.085, 1.092),  # missed by these splits: 1.087 and 1.085 as published
        ("gpt_oss_20b_fingerprint", 0.10, 2, 1.083, 1.090),
        ("gpt_oss_20b_fingerprint", 0.25, 0, 1.0, 1.023),
        ("deepseek_v2_lite_esft", 0.10, 0, 1.0, 1.072),
        ("deepseek_v2_lite_esft", 0.25, 0, 1.0, 1.023),
    ],
)
def test_targets_on_real_routing(folder, share, seed, least, most):
    """Half of the requests held out, each token its own step: within the target, or as far from it as the page says,
    and ahead of EPLB, paired."""
    trace = open_source(SHARED_TRACES / folder).load()
    shared = {"nodes": 2, "extra_memory": share, "steps": "token", "held_out": 0.5, "seed": seed}
    plan = PLANNERS["anneal"](trace, most_visits=1_000_000_000, **shared)  # a quarter of the default, for time
    assert least <= plan.prediction["heldout_ratio_to_ideal"] <= most
    problem = node_problem(trace, **shared)
    ours = node_score(problem.test, masks_of(plan), problem.times, problem.layer_weight)
    eplb = PLANNERS["eplb"](trace, score=False, **shared)
    theirs = node_score(problem.test, masks_of(eplb), problem.times, problem.layer_weight)
    _, low, _ = theirs.difference(ours)
    assert low > 0


def test_layer_steps_of_all_planners_are_the_same():
    """What is scored does not depend on the planner: same split, same steps."""
    trace = seeded_trace(1, num_requests=8)
    seen = {
        PLANNERS[name](trace, nodes=2, moe_intermediate_size=64, **QUICK.get(name, {})).prediction[
            "num_heldout_layer_steps"
        ]
        for name in ALL
    }
    _, test, _ = split(trace, held_out=0.25, seed=0)
    assert seen == {LayerSteps.of_trace(test, "step").num_layer_steps}
    assert len(list(itertools.chain(NODE_PLANNERS))) == 13
