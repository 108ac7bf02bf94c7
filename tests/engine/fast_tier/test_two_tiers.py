"""Two fast tiers: a policy moves experts of the first, the second keeps what the plan placed; live equals simulated."""

from __future__ import annotations

import numpy as np
import pytest

import moelab
from moelab import simulate
from moelab.domain.machine import Machine
from moelab.domain.plan import PLACEMENT_COLUMNS, FastTier, Plan
from moelab.engine.fast_tier.payload import home_block, in_format
from moelab.engine.fast_tier.plan import slot_layout
from moelab.engine.homes import prepare_to_give_up
from moelab.kernels import bf16_to_float32, isa_table
from tests.engine.fast_tier.nano_runs import PROMPTS, assert_live_equals_simulated, plan_of, run_live

NATIVE = any(row.supported and row.isa != "numba" for row in isa_table())
FIXED = [(layer, expert) for layer in range(6) for expert in (3, 17, 30)]


@pytest.fixture(scope="module")
def engine():
    with moelab.load(moelab.shipped("nano/model")) as engine:
        yield engine


def two_tiers(engine, policy, formats=("float32", "bf16"), resident=()):
    """`plan_of` with a second tier of three slots a layer, all taken."""
    plan = plan_of(engine, policy, slots_per_layer=5, weight_format=formats[0], resident=resident)
    document = plan.model_dump()
    columns = document["placements"]
    for layer, expert in FIXED:
        for name, value in {"layer": layer, "expert": expert, "start": 0, "stop": plan.num_units, "tier": 2}.items():
            columns[name] = (*columns[name], value)
    second = engine.slot_format(formats[1]).model_dump()
    return Plan.model_validate(
        document
        | {
            "tiers": ("node0", "fast0", "fast1"),
            "format_of_tier": document["format_of_tier"] | {"fast1": second},
            "fast_tiers": (*plan.fast_tiers, FastTier(tier="fast1", slots_per_layer=(3,) * 6)),
        }
    )


@pytest.mark.parametrize("policy", ["lru", "lfu", "arc", "second_touch", "prefetch_previous", "static"])
def test_live_equals_simulated(engine, policy):
    """Every decision, count and state; what lies on the second tier is never moved and always hit."""
    resident = [(2, 5), (4, 3 + 1)] if policy != "static" else [(layer, 8) for layer in range(6)]
    tier, trace = run_live(engine, two_tiers(engine, policy, resident=resident))
    simulated, report = assert_live_equals_simulated(tier, trace)
    assert report.num_slots == 6 * (5 + 3)
    assert report.weight_format == "float32, bf16"
    fixed = np.zeros((6, 48), bool)
    fixed[tuple(np.array(FIXED).T)] = True
    assert (tier.resident & fixed == fixed).all()
    assert not any(fixed[layer, expert] for _, _, layer, expert, _ in tier.log.tolist())
    assert simulated.bytes_of_link["fast1"] == 0
    engine.use_plan(None)


def test_what_lies_in_both_tiers(engine):
    """Weights of a slot of each, as its format rounds them; the logits stay those without tiers, nearly."""
    exact = engine.forward(PROMPTS[0])
    plan = two_tiers(engine, "static", resident=[(layer, 8) for layer in range(6)])
    tier = engine.use_plan(plan)
    for number, (layer, expert) in enumerate([(1, 8), (1, 17)]):
        layout = slot_layout(plan, number, engine.routed[layer].layout)
        block = in_format(home_block(engine.routed[layer], expert), engine.routed[layer].layout, layout)
        gate, up, down = layout.unpack_expert(block)
        if number == 1:
            gate, up, down = map(bf16_to_float32, (gate, up, down))
        gate_up, out = tier.slot_weights(layer, expert)
        rounding = 0.0 if number else 2**-8  # products may be of bf16: float32 weights are rounded once more
        np.testing.assert_allclose(gate_up.numpy()[: len(gate), : gate.shape[1]], gate, rtol=rounding)
        np.testing.assert_allclose(out.numpy()[: len(down), : down.shape[1]], down, rtol=rounding)
    logits = engine.forward(PROMPTS[0])
    difference = (logits - exact).norm() / exact.norm()
    assert 0 < difference < 0.05
    assert tier.report().hits > 0
    engine.use_plan(None)
    assert (engine.forward(PROMPTS[0]) == exact).all()


@pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
def test_homes_given_up_for_both_tiers(engine):
    """What lies on either tier has no home: the same text, and the bytes are gone."""
    resident = [(layer, 8) for layer in range(6)]
    kept = two_tiers(engine, "static", resident=resident)
    document = kept.model_dump()
    rows = list(zip(*(document["placements"][name] for name in PLACEMENT_COLUMNS), strict=True))
    rows = [row for row in rows if row[4] > 0 or row[:2] not in {*FIXED, *resident}]
    columns = dict(zip(PLACEMENT_COLUMNS, zip(*rows, strict=True), strict=True))
    gone = Plan.model_validate(document | {"placements": columns, "keep_home": False})
    texts = []
    for plan in (kept, gone):
        with moelab.load(moelab.shipped("nano/model"), plan=plan) as loaded:
            texts.append([text.token_ids for text in loaded.generate(PROMPTS, 6, stop=())])
            if plan is gone:
                held = sum(int(layer.placement.bytes_of_node.sum()) for layer in loaded.routed)
                assert held == (48 - 4) * 6 * loaded.expert_bytes
                assert sum(int(layer.placement.homeless.sum()) for layer in loaded.routed) == 24
    assert texts[0] == texts[1]


@pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
def test_the_read_limit_is_of_the_homes_that_are_left():
    """One layer without some of its homes, one without any, and none at all: nothing is read at address 0."""
    with moelab.load(moelab.shipped("nano/model")) as loaded:
        homeless = np.zeros((len(loaded.routed), len(loaded.routed[0].address_of_expert)), bool)
        homeless[1, :5] = True
        prepare_to_give_up(loaded.routed, homeless)()
        assert loaded.measure_read_limit().gb_per_s_of_node[0] > 0
        homeless[:] = False
        homeless[2] = True
        prepare_to_give_up(loaded.routed, homeless)()
        assert loaded.measure_read_limit().gb_per_s_of_node[0] > 0
        homeless[:] = True
        homeless[2] = False
        prepare_to_give_up(loaded.routed, homeless)()
        assert all(layer.placement.homeless.all() for layer in loaded.routed)
        assert loaded.measure_read_limit() is None
        assert loaded.read_limit is None


def test_refusals(engine):
    plan = two_tiers(engine, "lru")
    swapped = plan.model_dump() | {"fast_tiers": tuple(reversed(plan.fast_tiers))}
    with pytest.raises(ValueError, match="fast1, fast0; expected fast0, fast1 and so on in order"):
        engine.use_plan(Plan.model_validate(swapped))
    with moelab.record(engine) as trace:
        engine.generate(PROMPTS[0], 3, stop=())
    base = Machine.preset("desktop-ddr5-6000").model_dump()
    tier = {"name": "fast0", "device": "test", "memory_bytes": 10**9, "read_gb_per_s": 100.0, "link_gb_per_s": 10.0}
    with pytest.raises(ValueError, match="times are predicted beside one"):
        simulate(trace, plan, Machine.model_validate(base | {"fast_tiers": [tier]}), progress=False)
