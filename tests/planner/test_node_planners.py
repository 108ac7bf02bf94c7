"""Every planner of nodes: budgets, held-out scores, closed forms, the plan as a document; targets on captures."""

import itertools
import math

import numpy as np
import pytest

from moelab.domain.machine import FastTierDevice, Machine, NumaNode
from moelab.domain.plan import Plan
from moelab.planner import NODE_PLANNERS, PLANNERS
from moelab.planner.interleave import remote_slowdown
from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_plan import bound, masks_of_plan
from moelab.planner.node_problem import CutPrice, node_problem
from moelab.planner.node_score import node_score
from moelab.planner.static_plan import split
from moelab.sources import open_source
from tests.planner.naive_nodes import sum_of_maxima
from tests.seeded_traces import seeded_trace
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

ALL = sorted(set(NODE_PLANNERS) - {"joint", "fastest"})
QUICK = {"anneal": {"moves_per_expert": 100}, "best": {"moves_per_expert": 100}, "split_some": {"moves_per_expert": 50}}


def masks_of(plan):
    """int64 [L, E] as the objective reads it, read row by row: bits of whole copies, 0 for pieces, fast alone."""
    masks = np.zeros((plan.model.num_layers, plan.model.num_experts), np.int64)
    for layer, expert, start, stop, tier in zip(*plan.placements.arrays().values(), strict=True):
        if start == 0 and stop == plan.num_units:
            masks[layer, expert] |= 1 << tier
    fast = sum(1 << index for index, tier in enumerate(plan.tiers) if tier.startswith("fast"))
    masks = np.where(masks & fast, masks & fast, masks)
    assert (masks == masks_of_plan(plan)).all()
    return masks


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
    low, high = says["heldout_mean_max_interval"]
    assert low <= high
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


def test_mirror_of_unequal_nodes():
    """Everything on both, whatever their rates; what each may hold counts where it is given."""
    trace, rates = seeded_trace(1, num_requests=4), [3.0, 1.0]
    plan = PLANNERS["mirror"](trace, nodes=2, node_rates=rates)
    assert plan.prediction["bytes_per_node"] == [36_000, 36_000]
    assert plan.prediction["extra_memory_used"] == 1
    given = PLANNERS["mirror"](trace, node_rates=rates, node_bytes=[36_000, 36_000], nodes=2)
    assert masks_of(given).tolist() == masks_of(plan).tolist()
    with pytest.raises(ValueError, match="more on node1 than its budget"):
        PLANNERS["mirror"](trace, node_rates=rates, node_bytes=[36_000, 35_000], nodes=2)


@pytest.mark.parametrize("name", ["round_robin", "eplb"])
@pytest.mark.parametrize("rates", [[3.0, 1.0], [1.0, 2.0], [1.0, 1.0]])
def test_baselines_that_know_no_rates_of_unequal_nodes(name, rates):
    """The placement of equal nodes, timed by the slower one; what nodes may hold counts where it is said."""
    trace = seeded_trace(1, num_requests=8)
    extra = {"extra_memory": 0.25} if name == "eplb" else {}
    plan = PLANNERS[name](trace, nodes=2, node_rates=rates, held_out=0.5, **extra)
    equal = PLANNERS[name](trace, nodes=2, held_out=0.5, **extra)
    assert masks_of(plan).tolist() == masks_of(equal).tolist()
    held = equal.prediction["bytes_per_node"]
    assert plan.prediction["bytes_per_node"] == held
    assert (plan.prediction["heldout_mean_max"] > equal.prediction["heldout_mean_max"]) == (rates[0] != rates[1])
    assert plan.prediction["baseline_mean_max"][name] == pytest.approx(plan.prediction["heldout_mean_max"], rel=0.2)
    given = {"nodes": 2, "node_rates": rates, "held_out": 0.5}
    if name == "round_robin":
        PLANNERS[name](trace, node_bytes=held, **given)
        with pytest.raises(ValueError, match="more on node1 than its budget"):
            PLANNERS[name](trace, node_bytes=[held[0] + 9000, held[1] - 1000], **given)


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


def test_unequal_nodes_get_what_they_can_read():
    trace = seeded_trace(5, num_requests=6, num_experts=12, top_k=4)
    options = {"nodes": 2, "node_rates": [3.0, 1.0], "extra_memory": 0.2, "held_out": 0}
    plan = PLANNERS["anneal"](trace, moves_per_expert=300, **options)
    used = plan.prediction["bytes_per_node"]
    assert used[0] > 2 * used[1]
    even = PLANNERS["round_robin"](trace, nodes=2, held_out=0)
    problem = node_problem(trace, **options)
    theirs = node_score(problem.test, masks_of(even), problem.times, problem.layer_weight).mean
    assert plan.prediction["heldout_mean_max"] < 0.75 * theirs
    given = PLANNERS["replicate"](trace, nodes=2, held_out=0, node_bytes=[30_000, 10_000])
    assert given.prediction["bytes_per_node"][1] <= 10_000


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


@pytest.mark.parametrize(("slots", "keep_home"), [([9], True), ([6, 4], True), ([9], False)])
def test_joint_beats_the_hottest_first(slots, keep_home):
    trace = seeded_trace(8, num_requests=12, num_experts=16, top_k=4, decode_tokens=40)
    plan = PLANNERS["joint"](
        trace, fast_slots=slots, nodes=2, extra_memory=0.1, held_out=0.5, keep_home=keep_home, moves_per_expert=150
    )  # fmt: skip
    says = plan.prediction
    assert says["train_mean_max"] < says["hottest_first_train_mean_max"]
    assert says["heldout_mean_max"] < 1.03 * says["hottest_first_mean_max"]  # few requests: near enough
    assert says["hit_rate_per_request"] <= says["hottest_first_hit_rate"] + 0.02
    columns = plan.placements.arrays()
    count = np.bincount(columns["tier"], minlength=2 + len(slots))
    assert count[2:].tolist() == [fast.slots for fast in plan.fast_tiers]
    assert all(0.7 * most <= held <= most for held, most in zip(count[2:], slots, strict=True))
    assert plan.keep_home == keep_home
    homes = np.zeros((3, 16), bool)
    on_node = columns["tier"] < 2
    homes[columns["layer"][on_node], columns["expert"][on_node]] = True
    assert homes.all() == keep_home
    if keep_home:
        assert sum(says["bytes_per_node"]) <= 1.1 * 48_000
    assert says["bytes_per_node"] == [1000 * count[0], 1000 * count[1]]
    assert says["bytes_per_fast_tier"] == (1000 * count[2:]).tolist()
    assert says["copies_per_fast_tier"] == count[2:].tolist()
    assert len(says["copies_per_node"]) == 2
    assert says["extra_memory_bytes"] == 1000 * count[:2].sum() - 48_000  # a fast tier's copies are no extra memory
    assert says["extra_memory_bytes"] == pytest.approx(48_000 * says["extra_memory_used"])
    with pytest.raises(ValueError, match="fast_slots are"):
        PLANNERS["joint"](trace, fast_slots=[49])


@pytest.mark.parametrize("expert_bytes", [None, (1000, 3000, 2000)])
@pytest.mark.parametrize("seed", range(4))
def test_no_choice_for_the_fast_tier_goes_below_the_bound(seed, expert_bytes):
    """Sets that fill it with cold, random and the scored steps' own hottest experts, everything else everywhere."""
    trace = seeded_trace(seed, num_requests=8, num_experts=8, top_k=4, expert_bytes=expert_bytes)
    options = {"nodes": 2, "extra_memory": 1.0, "held_out": 0.5}
    says = PLANNERS["joint"](trace, fast_slots=[9], moves_per_expert=100, **options).prediction
    problem = node_problem(trace, fast_slots=[9], **options)
    assert says["gap"] == pytest.approx(says["heldout_mean_max"] / says["bound"] - 1)
    assert "fast tiers" in says["bound_of"]
    size = np.repeat(problem.tier_bytes[0], 8)
    uses = problem.test.uses.ravel()
    rng = np.random.default_rng(seed)
    means = [says["heldout_mean_max"]]
    for order in (
        np.argsort(-uses),
        np.argsort(-uses * size),
        np.argsort(uses),
        *(rng.permutation(24) for _ in "five"),
    ):
        room, masks = int(problem.budget[2]), np.full(24, 0b11)
        for key in order:
            if size[key] <= room:
                room -= size[key]
                masks[key] = 0b100
        masks = masks.reshape(problem.shape)
        means.append(node_score(problem.test, masks, problem.times, problem.layer_weight).mean)
        assert bound(problem, masks) == says["bound"]  # whatever the plan's own set
    assert says["bound"] <= min(means) + 1e-12
    if expert_bytes is None:  # equal bytes: uses less those of the nine hottest, over two nodes
        left = np.sort(uses)[:-9].sum()
        assert says["bound"] == pytest.approx(left / 2 / problem.test.num_layer_steps)
        assert min(means) < 1.5 * says["bound"]


def test_a_fast_tier_of_everything_has_no_gap():
    trace = seeded_trace(0, num_experts=8)
    says = PLANNERS["joint"](trace, fast_slots=[24], nodes=2, moves_per_expert=50).prediction
    assert says["bound"] == 0
    assert says["gap"] is None


def test_a_slow_fast_tier_is_not_filled_with_everything():
    """With its rate known, the fast tier is one more server: at a quarter of a node's rate hits must pay."""
    trace = seeded_trace(8, num_requests=6, num_experts=8, top_k=4)
    node = NumaNode(name="node0", cores=(0,), memory_bytes=2**40, read_gb_per_s={1: 100.0})
    fast = FastTierDevice(name="fast0", device="none", memory_bytes=2**40, read_gb_per_s=25.0)
    machine = Machine(name="paper", source="preset", nodes=(node,), fast_tiers=(fast,))
    plan = PLANNERS["joint"](trace, fast_slots=[24], nodes=1, machine=machine, held_out=0, moves_per_expert=300)
    alone = PLANNERS["mirror"](trace, nodes=1, held_out=0).prediction["heldout_mean_max"]
    assert plan.prediction["heldout_mean_max"] < alone
    assert plan.fast_tiers[0].slots < 12
    assert plan.planner["fast_rates"] == "preset of paper"


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
    assert in_time["heldout_mean_max_interval"] is None
    assert in_time["ties_with"] is None
    assert "in sample" in PLANNERS["replicate"](trace, nodes=2, held_out=0).prediction["scored_on"]


@needs_shared_traces
@pytest.mark.parametrize(
    ("folder", "share", "most"),
    [
        ("gpt_oss_20b_fingerprint", 0.10, 1.085),
        ("gpt_oss_20b_fingerprint", 0.25, 1.023),
        ("deepseek_v2_lite_esft", 0.10, 1.072),
        ("deepseek_v2_lite_esft", 0.25, 1.023),
    ],
)
def test_targets_on_real_routing(folder, share, most):
    """Half of the requests held out, each token its own step: within the target, and ahead of EPLB, paired."""
    trace = open_source(SHARED_TRACES / folder).load()
    shared = {"nodes": 2, "extra_memory": share, "steps": "token", "held_out": 0.5}
    plan = PLANNERS["anneal"](trace, most_visits=1_000_000_000, **shared)  # a quarter of the default, for time
    assert plan.prediction["heldout_ratio_to_ideal"] <= most
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


@pytest.mark.parametrize("seed", range(6))
def test_homes_follow_the_rates_within_what_nodes_may_hold(seed):
    """Shares of the homes: in sum one, no more than a budget, and as the rates wherever no budget binds."""
    rng = np.random.default_rng(seed)
    trace = seeded_trace(seed, num_requests=6)
    rates = rng.uniform(1, 4, 3)
    budget = (rng.dirichlet(np.ones(3)) * 60_000 + 12_000).astype(int)
    problem = node_problem(trace, nodes=3, node_rates=rates, node_bytes=budget, held_out=0.5)
    share, most = problem.node_share, budget // 1000 / 36
    assert share.sum() == pytest.approx(1)
    assert (share <= most + 1e-9).all()
    free = share < most - 1e-9
    assert np.ptp((share / rates)[free]) < 1e-9
    assert problem.how["extra_memory"] == pytest.approx(min(budget.sum() / 36_000 - 1, 2))
    for name in ("replicate", "coact"):
        plan = PLANNERS[name](trace, nodes=3, node_rates=rates, node_bytes=budget, held_out=0.5)
        assert (np.array(plan.prediction["bytes_per_node"]) <= budget).all()


@pytest.mark.parametrize("name", ["anneal", "best", "coact", "replicate"])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_tight_unequal_nodes_and_layers_of_unequal_bytes(name, seed):
    """Layers alternate in bytes; equal shares of each are (seeds 3, 4) too much for a node that has hardly any room."""
    rng = np.random.default_rng(seed)
    sizes = (1300, 100) * 3
    trace = seeded_trace(seed, num_layers=6, num_requests=8, expert_bytes=sizes)
    total = 12 * sum(sizes)
    small = int(total * rng.uniform(0.3, 0.5))
    budget = [total - small + 1300 * 3, small]
    plan = PLANNERS[name](trace, nodes=2, node_bytes=budget, held_out=0.5, **QUICK.get(name, {}))
    assert (np.array(plan.prediction["bytes_per_node"]) <= budget).all()
    assert (masks_of(plan) > 0).all()
