"""Drafts, edits, queries, map layers and memory against naive code."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import moelab
from moelab.domain.model import ModelSpec
from moelab.exploration import Draft, Edit, Exploration, Settings, select
from moelab.exploration.edit import edited
from moelab.exploration.map_layers import REUSE_STEPS, replicas_layer, reuse_layer, tier_layer
from moelab.exploration.memory import memory_of_tiers, other_bytes
from moelab.exploration.sample import stretches
from moelab.exploration.settings import planners
from moelab.policies.requests import PHASES, Requests
from tests.exploration.test_explore import EXPERTS, LAYERS, MIB, machine_with, trace_of

PLANS = [
    ("frequency", {"slots_per_layer": 4}), ("front_loading", {"slots_per_layer": 4}), ("mirror", {"nodes": 2}),
    ("row_split", {"nodes": 2}), ("split_some", {"nodes": 2, "extra_memory": 0.1}),
    ("replicate", {"nodes": 3, "extra_memory": 0.5}), ("joint", {"nodes": 2, "fast_slots": 6}),
]  # fmt: skip


@pytest.mark.parametrize(("planner", "options"), PLANS, ids=[name for name, _ in PLANS])
def test_draft_round_trip(planner, options):
    plan = moelab.PLANNERS[planner](trace_of(1), moe_intermediate_size=128, **options)
    draft = Draft.of_plan(plan)
    again = draft.put_into(plan)
    rows = [sorted(zip(*p.placements.arrays().values(), strict=True)) for p in (plan, again)]
    assert rows[0] == rows[1]
    assert again.planner == plan.planner


@pytest.mark.parametrize("seed", range(8))
def test_fast_tier_keeps_its_size_and_pins_stay(seed):
    rng = np.random.default_rng(seed)
    exploration = Exploration(trace_of(seed))
    draft = Draft.of_plan(exploration.plan(Settings(5)))
    slots, pinned = np.full(LAYERS, 5), np.zeros((LAYERS, EXPERTS), bool)
    for _ in range(6):
        chosen = np.zeros((LAYERS, EXPERTS), bool)
        chosen[rng.integers(LAYERS), rng.integers(EXPERTS, size=2)] = True
        action = str(rng.choice(["pin", "unpin", "move"]))
        edit = Edit(action, chosen, str(rng.choice(["fast0", "node0"])) if action == "move" else "")
        if action != "unpin" and edit.tier != "node0" and ((pinned | chosen).sum(1) > 5).any():
            with pytest.raises(ValueError, match="choose fewer experts"):
                edited(draft, edit, exploration.loads, slots)
            continue
        before, draft = draft, edited(draft, edit, exploration.loads, slots)
        if action == "pin":
            pinned |= chosen
        elif action == "unpin" or edit.tier == "node0":
            pinned &= ~chosen
        np.testing.assert_array_equal(draft.pinned, pinned)
        assert (draft.fast.sum(1) <= 5).all()
        if action == "pin" or edit.tier == "fast0":
            assert draft.fast[chosen].all()
            gone = before.fast & ~draft.fast
            kept = draft.fast & ~chosen & ~pinned
            for layer in range(LAYERS):  # the coldest went
                if gone[layer].any() and kept[layer].any():
                    loads = exploration.loads[layer]
                    assert loads[gone[layer]].max() <= loads[kept[layer]].min()
        assert not (draft.pinned & ~draft.fast).any()


def test_replicate_split_and_nodes():
    exploration = Exploration(trace_of(2), machine_with(2))
    exploration.intermediate = 128
    settings = Settings(0, 2, 0.0, "round_robin")
    chosen = np.zeros((LAYERS, EXPERTS), bool)
    chosen[1, 3:6] = True
    for action, copies in (("replicate", 2), ("split", 1)):
        outcome = exploration.preview(settings, [Edit(action, chosen)])
        columns = outcome.plan.placements.arrays()
        here = (columns["layer"] == 1) & (columns["expert"] == 4)
        assert sorted(columns["tier"][here].tolist()) == [0, 1]
        whole = columns["stop"][here] - columns["start"][here] == outcome.plan.num_units
        assert whole.all() == (action == "replicate")
        assert outcome.draft.copies[1, 4] == copies
    moved = exploration.preview(settings, [Edit("move", chosen, "node1")])
    assert (moved.draft.masks[chosen] == 2).all()
    with pytest.raises(ValueError, match="one node, so there is nothing to split"):
        exploration.preview(Settings(4), [Edit("split", chosen)])
    with pytest.raises(ValueError, match="expected fast0 or one of node0, node1"):
        exploration.preview(settings, [Edit("move", chosen, "node7")])
    with pytest.raises(ValueError, match="no expert is chosen"):
        exploration.preview(settings, [Edit("pin", np.zeros_like(chosen))])


def test_unknown_rows_cannot_be_split():
    exploration = Exploration(trace_of(2), machine_with(2))
    exploration.intermediate = None
    chosen = np.ones((LAYERS, EXPERTS), bool)
    with pytest.raises(ValueError, match="cannot be split: their intermediate size"):
        exploration.preview(Settings(0, 2, 0.0, "round_robin"), [Edit("split", chosen)])


@pytest.mark.parametrize("seed", range(5))
def test_select_equals_a_loop(seed):
    rng = np.random.default_rng(seed)
    columns = {
        "load": rng.random((4, 7)) * 3, "layer": np.repeat(np.arange(4), 7).reshape(4, 7),
        "expert": np.tile(np.arange(7), (4, 1)), "tier": rng.choice(["fast0", "node0"], (4, 7)),
    }  # fmt: skip
    for query in (
        "load > 1.5", "1 <= layer < 3 and tier == 'fast0'", "not (load > 1 or expert % 2 == 0)",
        "load * 2 - 1 > expert / 3", "tier != 'fast0' and (expert == 1 or expert == 2)",
    ):  # fmt: skip
        got = select(query, columns)
        for layer in range(4):
            for expert in range(7):
                row = {name: column[layer, expert] for name, column in columns.items()}
                assert got[layer, expert] == eval(query, {}, row), (query, layer, expert)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("__import__('os').system('true')", "expected comparisons of"), ("load >", "is not an expression"),
        ("heat > 1", "asks for heat, expected some of load"), ("load + 1", "gives numbers, expected a comparison"),
        ("load.real > 1", "expected comparisons of"), ("[load][0] > 1", "expected comparisons of"),
    ],
)  # fmt: skip
def test_select_refuses(query, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        select(query, {"load": np.ones((2, 2))})


@pytest.mark.parametrize("planner", ["row_split", "split_some"])
@pytest.mark.parametrize("call", ["preview", "full"])
def test_unknown_rows_cannot_be_cut_by_a_planner_either(planner, call):
    exploration = Exploration(trace_of(2), machine_with(2))
    exploration.intermediate = None
    with pytest.raises(
        ValueError, match=f"{planner} cuts experts over 2 nodes, but their intermediate size is not known"
    ):
        getattr(exploration, call)(Settings(0, 2, 0.0, planner))
    assert planner not in planners(2, 0, exploration.num_units)
    assert planner in planners(2, 0, 2)


def test_an_action_that_nobody_knows():
    exploration = Exploration(trace_of(2), machine_with(2))
    with pytest.raises(ValueError, match="action is 'burn', expected one of pin"):
        exploration.preview(Settings(4), [Edit("burn", np.zeros((LAYERS, EXPERTS), bool))])


@pytest.mark.parametrize("query", ["tier > 2", 'load > "a"', "-tier", 'tier + 1 == "x"'])
def test_texts_and_numbers_do_not_mix(query):
    columns = {"load": np.ones((2, 2)), "tier": np.full((2, 2), "fast0")}
    with pytest.raises(ValueError, match="mixes texts and numbers"):
        select(query, columns)


@pytest.mark.parametrize("seed", range(4))
def test_steps_before_a_stretch_warm_up_and_do_not_count(seed):
    trace = trace_of(seed, batch=2 if seed % 2 else 1)
    part = stretches(trace, 200, seed, warm_tokens=300)
    bare = stretches(trace, 200, seed)
    is_warm = (part.requests.flags & PHASES["mixed"]) == PHASES["mixed"]
    assert part.num_warm == is_warm.sum() > 0
    np.testing.assert_array_equal(part.requests.step[~is_warm], bare.requests.step)
    np.testing.assert_array_equal(part.cluster[~is_warm], bare.cluster)
    steps = np.unique(trace.tokens.step)
    rank = np.searchsorted(steps, part.requests.step)
    for at in np.flatnonzero(is_warm):  # the next step of the trace is there too, up to the stretch
        assert rank[at + 1] == rank[at] + 1
    counted = {int(step) for step in part.requests.step[~is_warm]}
    for cluster in range(part.num_clusters):
        first = rank[~is_warm][part.cluster[~is_warm] == cluster][0]
        tokens, before = 0, first - 1
        while before >= 0:
            tokens += (trace.tokens.step == steps[before]).sum()
            if tokens > 300 // 24:
                break
            assert int(steps[before]) in counted | {int(step) for step in part.requests.step[is_warm]}
            before -= 1


@pytest.mark.parametrize("seed", range(4))
def test_stretches_are_consecutive_whole_steps(seed):
    trace = trace_of(seed, batch=2 if seed % 2 else 1)
    part = stretches(trace, 200, seed)
    steps = np.unique(trace.tokens.step)
    assert part.is_sample
    assert part.num_steps_of_all == len(steps)
    rank = np.searchsorted(steps, part.requests.step)
    sizes = {step: (trace.tokens.step == step).sum() for step in part.requests.step.tolist()}
    for cluster in range(part.num_clusters):
        mine = rank[part.cluster == cluster]
        assert (np.diff(mine) == 1).all()
        assert len(mine) == 1 or sum(sizes[int(steps[at])] for at in mine) <= 200 // 24
    for step, size in sizes.items():
        assert (part.trace.tokens.step == step).sum() == size
    assert not stretches(trace, 10**6).is_sample


def test_reuse_equals_a_loop():
    trace = trace_of(9, num_requests=6)
    requests = Requests.of_trace(trace)
    got = reuse_layer(requests).values
    uses = [[[] for _ in range(EXPERTS)] for _ in range(LAYERS)]
    for request in range(requests.num_requests):
        for expert in requests.experts[requests.offsets[request] : requests.offsets[request + 1]]:
            uses[request % LAYERS][expert].append(request // LAYERS)
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            steps = uses[layer][expert]
            if not steps:
                assert np.isnan(got[layer, expert])
                continue
            soon = sum(b - a <= REUSE_STEPS for a, b in pairwise(steps))
            assert got[layer, expert] == pytest.approx(soon / len(steps))


def test_layers_of_a_placement():
    masks = np.array([[1, 2, 3, 0]])
    draft = Draft(masks, np.array([[True, False, False, False]]), np.zeros((1, 4), bool), np.array([2, 2]))
    layer = tier_layer(draft)
    assert [layer.names[int(value)] for value in layer.values[0]] == ["fast0", "node1", "several nodes", "split"]
    assert replicas_layer(draft).values.tolist() == [[2, 1, 2, 1]]


def test_memory_of_tiers():
    exploration = Exploration(trace_of(3), machine_with(2))
    plan = exploration.plan(Settings(2, 2, 0.0, "joint"))
    rows = {row.tier: row for row in memory_of_tiers(plan, machine_with(2), 7)}
    whole = EXPERTS * 4 * MIB
    held = plan.resident("fast0").sum(1) @ [MIB, 2 * MIB, MIB]
    assert rows["fast0"].expert_bytes == held <= 2 * LAYERS * 2 * MIB
    free = plan.model_copy(update={"fast_tiers": (plan.fast_tiers[0].model_copy(update={"slots": 20}),)})
    of_free = {row.tier: row for row in memory_of_tiers(free, None, 0)}["fast0"].expert_bytes
    assert of_free == held + (20 - plan.resident("fast0").sum()) * 2 * MIB, "a free slot may hold the largest expert"
    row_split = exploration.plan(Settings(0, 2, 0.0, "mirror"))
    assert [row.expert_bytes for row in memory_of_tiers(row_split, None, 0)] == [whole, whole]
    assert rows["fast0"].other_bytes == 7
    assert rows["node0"].other_bytes == 0
    assert rows["fast0"].fits
    small = machine_with(2).model_copy(update={"fast_tiers": ()})
    rows = {row.tier: row for row in memory_of_tiers(plan, small, 10**9)}
    assert rows["fast0"].machine_bytes is None
    assert rows["fast0"].fits is None
    assert not rows["node0"].fits
    spec = ModelSpec.preset("qwen3-30b-a3b")
    parts = spec.memory(100).bytes_of_part
    assert other_bytes(spec, 100) == sum(parts.values()) - parts["routed_experts"]
    assert other_bytes(None, 100) == 0
