"""A live engine goes over to plans with a fast tier: pieces beside it, homes given up and come back, failures."""

from __future__ import annotations

import numpy as np
import pytest

import moelab
from moelab.domain.plan import Plan
from moelab.migration import apply
from tests.engine.fast_tier.nano_runs import PROMPTS
from tests.migration.nano_plans import (
    NANO,
    NEEDS,
    fixed_experts,
    node_plan_of,
    one_node_plan,
    random_plan,
    static_plan,
    with_fast_tier,
)

pytestmark = NEEDS


def refuse_call(monkeypatch, owner, name: str, number: int, said: str) -> list[dict]:
    """The call of that number raises MemoryError, the others are real; keyword arguments of each, as they come."""
    real, calls = getattr(owner, name), []

    def called(*arguments, **choices):
        calls.append(choices)
        if len(calls) == number:
            raise MemoryError(said)
        return real(*arguments, **choices)

    monkeypatch.setattr(owner, name, called)
    return calls


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

    calls = refuse_call(monkeypatch, fast_tier, "FastTier", 1, "fast tier does not fit")
    with pytest.raises(MemoryError, match="does not fit"):
        apply(engine, with_fast_tier(node_plan_of(capture, "round_robin")), progress=False)
    assert calls[1]["late"] == "wait"
    assert calls[1]["keep_log"]
    engine.use_lossy(moelab.Lossy(cache_bias=0.1))
    before = [layer.placement for layer in engine.routed]
    with pytest.raises(ValueError, match="without a fast tier"):
        apply(engine, node_plan_of(capture, "round_robin"), progress=False)
    assert [layer.placement for layer in engine.routed] == before


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

    calls = refuse_call(monkeypatch, fast_tier, "FastTier", 1, "fast tier does not fit")
    with pytest.raises(MemoryError, match="does not fit"):
        apply(engine, with_fast_tier(node_plan_of(capture, "mirror")), progress=False)
    assert len(calls) == 2
    assert [layer.placement for layer in engine.routed] == placements
    assert [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())] == expected


def test_a_failure_while_homes_are_about_to_go(engine, capture, monkeypatch):
    """The table without them cannot be made for the fourth layer: nodes, tier, homes and text stay what they were."""
    before = with_fast_tier(node_plan_of(capture, "round_robin"))
    apply(engine, before, progress=False)
    engine.use_plan(before, late="wait")  # which copies were late must not count
    expected = [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())]
    copies = [set(layer.placement.memory_of_copy) for layer in engine.routed]
    from moelab.engine import homes

    calls = refuse_call(monkeypatch, homes, "_without", 4, "no room for a table")
    plan = static_plan(node_plan_of(capture, "mirror"), fixed_experts(capture), keep_home=False)
    with pytest.raises(MemoryError, match="no room for a table"):
        apply(engine, plan, progress=False)
    assert len(calls) == 4
    assert [set(layer.placement.memory_of_copy) for layer in engine.routed] == copies
    assert not any(layer.placement.homeless.any() for layer in engine.routed)
    assert [text.token_ids for text in engine.generate(PROMPTS, 4, stop=())] == expected
    assert apply(engine, plan, progress=False).homes_given_up == len(fixed_experts(capture))


def test_keep_home_false_is_refused_where_experts_would_be_lost(engine, capture):
    plan = static_plan(node_plan_of(capture, "round_robin"), fixed_experts(capture), keep_home=False)
    moving = Plan.model_validate(plan.model_dump() | {"policy": {"name": "lru"}})
    with pytest.raises(ValueError, match="an evicted expert would be lost"):
        apply(engine, moving, progress=False)
    with pytest.raises(ValueError, match="which use_plan does not touch"):
        engine.use_plan(plan)
    with moelab.load(NANO, isa="numba") as slow, pytest.raises(ValueError, match="load it with a native isa"):
        apply(slow, plan, progress=False)
