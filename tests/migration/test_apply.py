"""A live engine goes over to other plans: texts, bytes of every node, memory, failures, and the command."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import moelab
from moelab import PLANNERS
from moelab.cli import main
from moelab.domain.plan import FastTier, Plan
from moelab.domain.trace import Phase
from moelab.kernels import Pool, RoutedExperts, copy_memory, isa_table, pages
from moelab.kernels.pages import several_nodes
from moelab.migration import apply
from moelab.migration.difference import MARGIN, Difference
from tests.engine.fast_tier.nano_runs import PROMPTS

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
pytestmark = [
    pytest.mark.skipif(not NATIVE, reason="native kernels are not built"),
    pytest.mark.skipif(cores < 2, reason="one core only"),
]
NANO = moelab.shipped("nano/model")


@pytest.fixture(scope="module")
def capture():
    return moelab.open_trace(moelab.shipped("nano/capture")).load()


@pytest.fixture
def engine():
    with moelab.load(NANO, virtual_nodes=2, activation="int8") as engine:
        yield engine


def node_plan_of(capture, name, **options):
    return PLANNERS[name](capture, nodes=2, phase="decode", score=False, **options)


def random_plan(capture, seed):
    """Round-robin's plan with every expert whole, halved or replicated by lot."""
    base = node_plan_of(capture, "round_robin")
    rng = np.random.default_rng(seed)
    rows = []
    for layer in range(base.model.num_layers):
        for expert in range(base.model.num_experts):
            kind, node = rng.integers(3), int(rng.integers(2))
            if kind == 0:
                cut = int(rng.integers(1, base.num_units))
                rows += [(layer, expert, 0, cut, node), (layer, expert, cut, base.num_units, 1 - node)]
            else:
                rows += [(layer, expert, 0, base.num_units, (node + copy) % 2) for copy in range(int(kind))]
    columns = dict(zip(("layer", "expert", "start", "stop", "tier"), zip(*rows, strict=True), strict=True))
    return Plan.model_validate(base.model_dump() | {"placements": columns, "prediction": {}})


def test_every_placement_writes_the_same_text(engine, capture):
    """Between generations: interleaved, replicated, cut, by lot, and back; each node reads what the plan gives it."""
    expected = [text.token_ids for text in engine.generate(PROMPTS, 6, stop=())]
    plans = [
        node_plan_of(capture, "round_robin"), node_plan_of(capture, "mirror"), node_plan_of(capture, "row_split"),
        random_plan(capture, 1), random_plan(capture, 2),
    ]  # fmt: skip
    for plan in plans:
        applied = apply(engine, plan, progress=False)
        assert applied.num_nodes == 2
        assert applied.virtual_nodes
        before = np.array([layer.bytes_of_node[:2] for layer in engine.routed])
        texts = engine.generate(PROMPTS, 6, stop=())
        assert [text.token_ids for text in texts] == expected
        read = np.array([layer.bytes_of_node[:2] for layer in engine.routed]) - before
        assert (read > 0).all()
        if plan.planner["name"] == "row_split":
            np.testing.assert_array_equal(read[:, 0], read[:, 1])
        logits = engine.forward(PROMPTS[0])
        assert logits.isfinite().all()
    table = engine.bandwidth(Phase.DECODE)
    assert {row.node for row in table.rows} == {0, 1}
    counted = np.array([layer.bytes_of_node[:2] for layer in engine.routed])
    of_phases = [engine._phase_counts.of(phase).num_bytes for phase in Phase]
    np.testing.assert_array_equal(sum(of_phases), counted)  # those before anything lay on nodes are node 0's
    assert (of_phases[1] > 0).all()


def test_in_the_middle_of_a_text(engine, capture):
    expected = list(engine.stream(PROMPTS[0], 16, stop=()))
    stream = engine.stream(PROMPTS[0], 16, stop=())
    got = [next(stream) for _ in range(5)]
    apply(engine, random_plan(capture, 3), progress=False)
    got += [next(stream) for _ in range(5)]
    apply(engine, node_plan_of(capture, "mirror"), progress=False)
    assert got + list(stream) == expected


def test_only_the_difference_moves(engine, capture):
    """The same plan again moves nothing; a replicated one adds copies and keeps those that are there."""
    single = node_plan_of(capture, "round_robin")
    first = apply(engine, single, progress=False)
    num = engine.spec.n_routed_experts * len(engine.routed)
    assert (first.copies_added, first.copies_kept, first.copies_removed) == (num, 0, num)
    again = apply(engine, single, progress=False)
    assert (again.copies_added, again.copies_kept, again.copies_removed, again.bytes_added) == (0, num, 0, 0)
    mirrored = apply(engine, node_plan_of(capture, "mirror"), progress=False)
    assert (mirrored.copies_added, mirrored.copies_kept, mirrored.copies_removed) == (num, num, 0)
    assert mirrored.bytes_added == num * engine.expert_bytes
    back = apply(engine, single, progress=False)
    assert (back.copies_added, back.copies_removed, back.bytes_removed) == (0, num, num * engine.expert_bytes)
    assert back.to_frame().copies_kept[0] == num
    assert "copies_added" in repr(back)
    assert "Applied" in back._repr_html_()


def test_memory_of_what_moved_returns(engine, capture):
    """16 MB of experts: mirrored and back, the process is as large as before."""
    single = node_plan_of(capture, "round_robin")
    gc.collect()  # what tests before this one left would be freed in between
    before = apply(engine, single, progress=False).resident_after_bytes
    if before is None:
        pytest.skip("reads /proc")
    total = len(engine.routed) * engine.spec.n_routed_experts * engine.expert_bytes
    sizes = []
    for _ in range(3):
        mirrored = apply(engine, node_plan_of(capture, "mirror"), progress=False)
        assert mirrored.resident_after_bytes - before > 0.8 * total
        sizes.append(apply(engine, single, progress=False).resident_after_bytes)
    # The interpreter takes some megabytes for itself in between; a copy that stays would cost `total` each time.
    assert min(sizes) - before < 0.5 * total
    assert sizes[2] - sizes[0] < total


def test_experts_move_in_batches_where_little_may_be_there_twice(engine, capture):
    """From nodes to nodes with the room of two experts: the same text, the same bytes on the nodes, less on the way."""
    apply(engine, node_plan_of(capture, "round_robin"), progress=False)
    expected = [text.token_ids for text in engine.generate(PROMPTS, 6, stop=())]
    expert_bytes = engine.routed[0].layout.expert_bytes
    target = node_plan_of(capture, "replicate", extra_memory=0.2)
    in_one = apply(engine, target, progress=False)
    apply(engine, node_plan_of(capture, "round_robin"), progress=False)
    applied = apply(engine, target, extra_bytes=2 * expert_bytes, progress=False)
    assert applied.peak_extra_bytes <= 2 * expert_bytes < in_one.peak_extra_bytes
    for name in ("copies_added", "copies_kept", "copies_removed", "bytes_added", "bytes_removed"):
        assert getattr(applied, name) == getattr(in_one, name)
    assert [text.token_ids for text in engine.generate(PROMPTS, 6, stop=())] == expected
    with pytest.raises(ValueError, match="new copies of expert"):
        apply(engine, node_plan_of(capture, "round_robin"), extra_bytes=1, progress=False)


def test_a_failure_leaves_the_old_plan_whole(engine, capture, monkeypatch):
    expected = [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())]
    apply(engine, random_plan(capture, 4), progress=False)
    placements = [layer.placement for layer in engine.routed]
    from moelab.kernels import copy_memory

    real, calls = copy_memory.map_pages, []

    def refuse(num_bytes, node=None):
        calls.append(num_bytes)
        if len(calls) == 7:
            raise MemoryError("node1: expected room for more than there is")
        return real(num_bytes, node)

    monkeypatch.setattr(copy_memory, "map_pages", refuse)
    with pytest.raises(MemoryError, match=r"placement of .* copies on node .*: node1: expected room"):
        apply(engine, random_plan(capture, 5), progress=False)
    monkeypatch.setattr(copy_memory, "map_pages", real)
    assert [layer.placement for layer in engine.routed] == placements
    assert [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())] == expected
    # Stopped between two layers.
    place, placed = RoutedExperts.place, []

    def stop(self, *arguments):
        placed.append(self)
        if len(placed) == 4:
            raise KeyboardInterrupt
        place(self, *arguments)

    monkeypatch.setattr(RoutedExperts, "place", stop)
    with pytest.raises(KeyboardInterrupt):
        apply(engine, random_plan(capture, 5), progress=False)
    monkeypatch.setattr(RoutedExperts, "place", place)
    assert [layer.placement for layer in engine.routed] == placements
    assert [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())] == expected
    # A fast tier that cannot be made, after the homes have turned already.
    joint = with_fast_tier(node_plan_of(capture, "mirror"), "Q4_0")
    with pytest.raises(ValueError, match="format of the fast tier"):
        apply(engine, joint, progress=False)
    assert [layer.placement for layer in engine.routed] == placements
    assert [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())] == expected


def test_a_failure_leaves_the_fast_tier_as_it_was(engine, capture, monkeypatch):
    apply(engine, node_plan_of(capture, "mirror"), progress=False)
    tier = engine.use_plan(with_fast_tier(node_plan_of(capture, "mirror")), late="wait", keep_log=True)
    engine.generate(PROMPTS, 4, stop=())
    held, log = tier.resident.copy(), len(tier.log)
    assert held.any()
    with pytest.raises(ValueError, match="format of the fast tier"):
        apply(engine, with_fast_tier(node_plan_of(capture, "round_robin"), "Q4_0"), progress=False)
    assert engine.fast_tier is tier
    np.testing.assert_array_equal(tier.resident, held)
    assert len(tier.log) == log
    # Memory that the new tier does not get: then the old one is made anew, with what it was told.
    from moelab.engine.fast_tier import fast_tier

    real, calls = fast_tier.FastTier, []

    def refuse(*arguments, **choices):
        calls.append(choices)
        if len(calls) == 1:
            raise MemoryError("fast tier does not fit")
        return real(*arguments, **choices)

    monkeypatch.setattr(fast_tier, "FastTier", refuse)
    with pytest.raises(MemoryError, match="does not fit"):
        apply(engine, with_fast_tier(node_plan_of(capture, "round_robin")), progress=False)
    assert calls[1]["late"] == "wait"
    assert calls[1]["keep_log"]
    engine.use_lossy(moelab.Lossy(cache_bias=0.1))
    before = [layer.placement for layer in engine.routed]
    with pytest.raises(ValueError, match="without a fast tier"):
        apply(engine, node_plan_of(capture, "round_robin"), progress=False)
    assert [layer.placement for layer in engine.routed] == before


def test_a_plan_of_one_node_leaves_homes_where_they_are(engine, capture):
    """It says nothing of the others, so only the fast tier changes, and nothing is copied for it."""
    plan = PLANNERS["frequency"](capture, slots_per_layer=4, phase="decode", score=False)
    alone = apply(engine, plan, progress=False)
    assert (alone.copies_added, alone.bytes_added, alone.copies_removed) == (0, 0, 0)
    assert alone.fast_tier == "24 experts"
    apply(engine, node_plan_of(capture, "round_robin"), progress=False)
    placements = [layer.placement for layer in engine.routed]
    apply(engine, plan, progress=False)
    assert [layer.placement for layer in engine.routed] == placements
    before = np.array([layer.bytes_of_node[:2] for layer in engine.routed])
    engine.generate(PROMPTS, 4, stop=())
    assert ((np.array([layer.bytes_of_node[:2] for layer in engine.routed]) - before) > 0).all()


def test_small_steps_use_the_workers_of_their_nodes(engine, capture, monkeypatch):
    """Below the bytes that pay for waking workers, one worker would read all; on nodes it may not."""
    from moelab.engine import decode_program

    monkeypatch.setattr(decode_program, "ALONE_BYTES", 10**12)
    expected = engine.generate(PROMPTS[0], 6, stop=()).token_ids
    apply(engine, node_plan_of(capture, "round_robin"), progress=False)
    assert engine.generate(PROMPTS[0], 6, stop=()).token_ids == expected


def with_fast_tier(plan, weight_format="bf16"):
    formats = {name: each.model_dump() for name, each in plan.format_of_tier.items()}
    fast = {"weight_format": weight_format, "expert_bytes": (0,) * plan.model.num_layers}
    return Plan.model_validate(
        plan.model_dump()
        | {
            "tiers": (*plan.tiers, "fast0"),
            "format_of_tier": formats | {"fast0": fast},
            "fast_tiers": (FastTier(tier="fast0", slots_per_layer=(6,) * plan.model.num_layers),),
            "policy": {"name": "lru"},
        }
    )


def test_nodes_and_a_fast_tier_together(engine, capture):
    applied = apply(engine, with_fast_tier(node_plan_of(capture, "round_robin")), progress=False)
    assert applied.fast_tier == "0 experts"
    engine.generate(PROMPTS, 6, stop=())
    assert engine.fast_tier.report().hits > 0
    assert (np.array([layer.bytes_of_node[:2] for layer in engine.routed]).sum(0) > 0).all()
    apply(engine, node_plan_of(capture, "mirror"), progress=False)
    assert engine.fast_tier is None


def test_pieces_beside_a_fast_tier(engine, capture):
    """Slots are filled from homes in pieces as from whole ones: the same text, and the same decisions."""
    texts, resident = [], []
    for plan in (node_plan_of(capture, "round_robin"), node_plan_of(capture, "row_split"), random_plan(capture, 7)):
        apply(engine, with_fast_tier(plan), progress=False)
        tier = engine.use_plan(with_fast_tier(plan), late="wait")  # which copies were late must not count
        texts.append([text.token_ids for text in engine.generate(PROMPTS, 6, stop=())])
        resident.append(tier.resident.copy())
        layer, expert = np.argwhere(tier.resident)[0]
        gate_up, _ = tier.slot_weights(layer, expert)
        assert gate_up.isfinite().all()
    assert texts[0] == texts[1] == texts[2]
    np.testing.assert_array_equal(resident[0], resident[1])
    np.testing.assert_array_equal(resident[0], resident[2])
    fast_pieces = with_fast_tier(node_plan_of(capture, "row_split")).model_dump()
    columns = fast_pieces["placements"]
    for name, value in {"layer": 0, "expert": 3, "start": 0, "stop": 1, "tier": 2}.items():
        columns[name] = (*columns[name], value)
    with pytest.raises(ValueError, match="places pieces of experts on fast0"):
        apply(engine, Plan.model_validate(fast_pieces), progress=False)


def static_plan(plan, experts, *, keep_home):
    """These experts (layer, expert) on fast0 for good; without their homes where ``keep_home`` is false."""
    base = with_fast_tier(plan).model_dump()
    columns = base["placements"]
    rows = list(zip(*(columns[name] for name in ("layer", "expert", "start", "stop", "tier")), strict=True))
    if not keep_home:
        rows = [row for row in rows if row[:2] not in experts]
    rows += [(layer, expert, 0, plan.num_units, len(plan.tiers)) for layer, expert in experts]
    columns = dict(zip(("layer", "expert", "start", "stop", "tier"), zip(*rows, strict=True), strict=True))
    pinned = tuple((layer, expert, "fast0") for layer, expert in experts)
    changes = {"placements": columns, "keep_home": keep_home, "policy": {"name": "static"}, "pinned": pinned}
    return Plan.model_validate(base | changes)


def one_node_plan(capture):
    plan = PLANNERS["frequency"](capture, slots_per_layer=4, phase="decode", score=False)
    whole = {name: column[: 6 * 48] for name, column in node_plan_of(capture, "round_robin").placements}
    changes = {"tiers": ("node0",), "placements": whole | {"tier": (0,) * 288}, "fast_tiers": (), "prediction": {}}
    formats = {"node0": plan.format_of_tier["node0"].model_dump()}
    return Plan.model_validate(plan.model_dump() | changes | {"format_of_tier": formats, "policy": {}, "pinned": ()})


def fixed_experts(capture, per_layer=6):
    counts = np.stack([np.bincount(capture.experts[:, layer].ravel(), minlength=48) for layer in range(6)])
    return [(layer, int(e)) for layer in range(6) for e in counts[layer].argsort()[::-1][:per_layer]]


@pytest.mark.parametrize("base", ["one node", "round_robin", "row_split"])
def test_pinned_experts_give_up_their_homes(engine, capture, base):
    """The same text as with homes kept; the bytes are gone; the next plan brings them back from the checkpoint."""
    experts = fixed_experts(capture)
    plan = one_node_plan(capture) if base == "one node" else node_plan_of(capture, base)
    original = [np.stack([np.array(layer.owner[e]) for e in range(48)]) for layer in engine.routed]
    apply(engine, static_plan(plan, experts, keep_home=True), progress=False)
    expected = [text.token_ids for text in engine.generate(PROMPTS, 6, stop=())]
    hits = engine.fast_tier.report().hits
    assert hits > 0
    applied = apply(engine, static_plan(plan, experts, keep_home=False), progress=False)
    assert applied.homes_given_up == len(experts)
    assert applied.home_bytes_given_up >= len(experts) * engine.expert_bytes
    assert [text.token_ids for text in engine.generate(PROMPTS, 6, stop=())] == expected
    for layer, routed in enumerate(engine.routed):
        assert {(layer, int(e)) for e in np.flatnonzero(routed.placement.homeless)} == {
            each for each in experts if each[0] == layer
        }
        assert int(routed.placement.bytes_of_node.sum()) == (48 - 6) * engine.expert_bytes
    with pytest.raises(ValueError, match="live on its fast tier alone"):
        engine.use_plan(None)
    # A failure in the middle leaves them without homes and on the tier.
    with pytest.raises(ValueError, match="format of the fast tier"):
        apply(engine, with_fast_tier(node_plan_of(capture, "mirror"), "Q4_0"), progress=False)
    assert [text.token_ids for text in engine.generate(PROMPTS, 6, stop=())] == expected
    back = apply(engine, node_plan_of(capture, "mirror"), progress=False)
    assert back.homes_from_checkpoint == len(experts)
    assert engine.fast_tier is None
    for layer, blocks in zip(engine.routed, original, strict=True):
        for expert, block in enumerate(blocks):
            np.testing.assert_array_equal(layer.placement[expert], block)


def test_a_failure_after_homes_came_back(engine, capture, monkeypatch):
    """The new tier gets no memory once: the old one is made anew from the homes that came back, which then go again."""
    experts = fixed_experts(capture)
    plan = static_plan(node_plan_of(capture, "round_robin"), experts, keep_home=False)
    apply(engine, plan, progress=False)
    expected = [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())]
    placements = [layer.placement for layer in engine.routed]
    from moelab.engine.fast_tier import fast_tier

    real, calls = fast_tier.FastTier, []

    def refuse(*arguments, **choices):
        calls.append(choices)
        if len(calls) == 1:
            raise MemoryError("fast tier does not fit")
        return real(*arguments, **choices)

    monkeypatch.setattr(fast_tier, "FastTier", refuse)
    with pytest.raises(MemoryError, match="does not fit"):
        apply(engine, with_fast_tier(node_plan_of(capture, "mirror")), progress=False)
    assert len(calls) == 2
    assert [layer.placement for layer in engine.routed] == placements
    assert [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())] == expected


def test_keep_home_false_is_refused_where_experts_would_be_lost(engine, capture):
    plan = static_plan(node_plan_of(capture, "round_robin"), fixed_experts(capture), keep_home=False)
    moving = Plan.model_validate(plan.model_dump() | {"policy": {"name": "lru"}})
    with pytest.raises(ValueError, match="an evicted expert would be lost"):
        apply(engine, moving, progress=False)
    with pytest.raises(ValueError, match="which use_plan does not touch"):
        engine.use_plan(plan)
    with moelab.load(NANO, isa="numba") as slow, pytest.raises(ValueError, match="load it with a native isa"):
        apply(slow, plan, progress=False)


def test_refusals(engine, capture):
    three = PLANNERS["round_robin"](capture, nodes=3, phase="decode", score=False)
    with pytest.raises(ValueError, match="node0, node1, node2; expected at most the 2 nodes here"):
        apply(engine, three, progress=False)
    other = node_plan_of(capture, "round_robin")
    bytes_of = {name: each.model_dump() | {"expert_bytes": (17,) * 6} for name, each in other.format_of_tier.items()}
    with pytest.raises(ValueError, match=r"plan says \[17\] bytes for an expert at home"):
        apply(engine, Plan.model_validate(other.model_dump() | {"format_of_tier": bytes_of}), progress=False)
    with moelab.load(NANO, isa="numba") as slow, pytest.raises(ValueError, match="workers know no nodes"):
        apply(slow, other, progress=False)
    with pytest.raises(ValueError, match=r"moelab.apply\(engine, plan\) carries it out"):
        engine.use_plan(other)
    with pytest.raises(ValueError, match="has 1 nodes with read rates"):
        apply(engine, other, machine=moelab.Machine.preset("desktop-ddr5-6000"), progress=False)


def test_command(capture, tmp_path, capsys):
    random_plan(capture, 6).save(tmp_path / "plan.json")
    prompts = Path(NANO).parent / "prompts.jsonl"
    command = ["apply", str(tmp_path / "plan.json"), "--prompts", str(prompts), "--virtual-nodes", "2", "--limit", "2"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["texts_equal"] == result["prompts"] == 2
    assert result["tokens_different"] == result["allowed_top2_margin"] == 0
    assert result["largest_top2_margin"] is None
    assert 0 < result["peak_extra_bytes"] < result["bytes_added"] / 3
    for when in ("before", "after"):
        assert result[when]["ms_per_token"] > 0
    assert main([*command, "--no-check"]) == 0
    printed = capsys.readouterr().out
    assert "ms_per_token after" in printed
    assert "texts_equal" not in printed


@pytest.mark.skipif(several_nodes(), reason="needs a machine of one node")
def test_a_plan_of_more_nodes_than_the_machine_runs_on_virtual_nodes(capture, tmp_path, capsys):
    """By the command as it stands in the issue, and loaded with the plan; more nodes than cores are refused."""
    prompts = Path(NANO).parent / "prompts.jsonl"
    random_plan(capture, 6).save(tmp_path / "plan.json")
    command = ["apply", str(tmp_path / "plan.json"), "--model", "nano", "--prompts", str(prompts), "--limit", "1"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_nodes"], result["virtual_nodes"]) == (2, True)
    assert all(result["after"]["bytes_of_node"])
    with moelab.load(NANO, plan=tmp_path / "plan.json") as loaded:
        assert (loaded.pool.num_nodes, loaded.pool.virtual) == (2, True)
        assert "on 2 virtual nodes" in repr(loaded)
    PLANNERS["round_robin"](capture, nodes=8 * cores, phase="decode", score=False).save(tmp_path / "plan.json")
    assert main(command) == 2
    assert "expected at most" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"plan has {8 * cores} nodes; expected at most"):
        moelab.load(NANO, plan=tmp_path / "plan.json")


def test_command_states_the_margin_of_tokens_that_differ(capture, tmp_path, capsys, monkeypatch):
    """To a fast tier: tokens may differ where the model was not sure, and elsewhere the command fails."""
    with_fast_tier(node_plan_of(capture, "round_robin"), "int4_g32").save(tmp_path / "plan.json")
    rows = [{"request": n, "domain": "test", "prompt": f"Part {n}", "max_new_tokens": 12} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["apply", str(tmp_path / "plan.json"), "--prompts", str(tmp_path / "prompts.jsonl")]
    command += ["--virtual-nodes", "2", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["allowed_top2_margin"] == MARGIN
    assert result["tokens_compared"] == 36
    assert all(each["top2_margin"] < MARGIN for each in result["first_differences"])
    of = Difference.of

    def as_if_sure(without, moved, allowed):
        """The last token of the second text comes out otherwise, though the model was sure of it."""
        without = [list(text) for text in without]
        without[1][-1] = (without[1][-1][0] + 1, 3.0)
        return of(without, [*without[:1], moved[1], *without[2:]], allowed)

    monkeypatch.setattr(Difference, "of", as_if_sure)
    assert main(command) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["largest_top2_margin"] == 3.0
    assert result["difference_allowed"] is False
    assert main([*command, "--margin", "4"]) == 0


def test_memory_that_is_not_bound_is_refused_by_name(engine, capture, monkeypatch):
    """As in a container without mbind: both nodes are the real node 0 here."""
    assert apply(engine, node_plan_of(capture, "round_robin"), progress=False).binding.startswith("none: the node of")
    assert "binding none" in repr(engine)
    monkeypatch.setattr(engine.pool, "memory_node_of_node", [0, 0])
    expected = engine.generate(PROMPTS[0], 4, stop=()).token_ids
    placements = [layer.placement for layer in engine.routed]
    monkeypatch.setattr(pages, "_bind", lambda mapping, node: "unavailable: Operation not permitted")
    with pytest.raises(OSError, match=r"bound to node0, got unavailable: Operation not .*allow-unbound"):
        apply(engine, random_plan(capture, 8), progress=False)
    assert [layer.placement for layer in engine.routed] == placements
    assert engine.generate(PROMPTS[0], 4, stop=()).token_ids == expected
    applied = apply(engine, random_plan(capture, 8), allow_unbound=True, progress=False)
    assert "unavailable: Operation not permitted" in applied.binding
    assert "unavailable" in engine.summary()["expert memory"]
    assert engine.generate(PROMPTS[0], 4, stop=()).token_ids == expected
    monkeypatch.setattr(Pool, "__init__", real_nodes(Pool.__init__))
    with pytest.raises(OSError, match="expected memory bound to node0"):
        moelab.load(NANO, plan=random_plan(capture, 8), virtual_nodes=2)
    with moelab.load(NANO, plan=random_plan(capture, 8), virtual_nodes=2, allow_unbound=True) as loaded:
        assert loaded.binding == "unavailable: Operation not permitted"


def real_nodes(init):
    def as_if_real(self, *arguments, **options):
        init(self, *arguments, **options)
        self.memory_node_of_node = [0] * self.num_nodes

    return as_if_real


def test_pages_that_the_system_keeps_are_counted(engine, capture, monkeypatch):
    assert apply(engine, node_plan_of(capture, "mirror"), progress=False).bytes_not_returned == 0
    give = copy_memory.ctypes.CDLL

    class Locked:
        def __init__(self, *arguments, **options):
            self.libc = give(*arguments, **options)

        def __getattr__(self, name):
            return (lambda *arguments: -1) if name == "madvise" else getattr(self.libc, name)

    monkeypatch.setattr(copy_memory, "ctypes", SimpleNamespace(**{**vars(copy_memory.ctypes), "CDLL": Locked}))
    kept = apply(engine, node_plan_of(capture, "round_robin"), progress=False)
    assert kept.bytes_not_returned == kept.bytes_removed > 0


def test_command_with_a_text_of_one_token(capture, tmp_path, capsys):
    random_plan(capture, 6).save(tmp_path / "plan.json")
    rows = [{"request": n, "domain": "d", "prompt": "one", "max_new_tokens": n + 1} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["apply", str(tmp_path / "plan.json"), "--prompts", str(tmp_path / "prompts.jsonl"), "--json"]
    assert main([*command, "--virtual-nodes", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["texts_equal"] == 3
    assert result["tokens_compared"] <= 6
