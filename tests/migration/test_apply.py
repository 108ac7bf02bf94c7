"""A live engine goes over to other plans: texts, bytes of every node, memory, failures, refusals."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest

import moelab
from moelab import PLANNERS, simulate
from moelab.domain.plan import Plan
from moelab.domain.trace import Phase
from moelab.kernels import Pool, RoutedExperts, copy_memory, pages
from moelab.migration import apply
from tests.engine.fast_tier.nano_runs import PROMPTS
from tests.migration.nano_plans import NANO, NEEDS, node_plan_of, random_plan, with_fast_tier

pytestmark = NEEDS


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
        with moelab.record(engine) as trace:
            texts = engine.generate(PROMPTS, 6, stop=())
        assert [text.token_ids for text in texts] == expected
        read = np.array([layer.bytes_of_node[:2] for layer in engine.routed]) - before
        predicted = simulate(trace, plan, progress=False).node_reads.sum(0)
        np.testing.assert_array_equal(read, predicted)
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
    """16 MB of experts, mirrored and back ten times: what stays behind each time is next to nothing of what moves."""
    single, mirror = node_plan_of(capture, "round_robin"), node_plan_of(capture, "mirror")
    if apply(engine, single, progress=False).resident_after_bytes is None:
        pytest.skip("reads /proc")
    gc.collect()  # what tests before this one left would be freed in between
    there, back = [], []
    for _ in range(10):
        there.append(apply(engine, mirror, progress=False))
        back.append(apply(engine, single, progress=False))
    moved = there[0].bytes_added
    assert moved == back[0].bytes_removed == len(engine.routed) * engine.spec.n_routed_experts * engine.expert_bytes
    for mirrored, alone in zip(there, back, strict=True):
        assert mirrored.resident_after_bytes - alone.resident_after_bytes > 0.8 * moved  # it was there, and went
    sizes = [alone.resident_after_bytes for alone in back[2:]]  # the interpreter takes its own megabytes at first
    growth_per_cycle = np.polyfit(np.arange(len(sizes)), sizes, 1)[0]
    assert growth_per_cycle < 0.05 * moved


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
