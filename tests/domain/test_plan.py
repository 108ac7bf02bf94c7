"""Plan version 1: a golden file loads for ever, round trips exactly, contradictions are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.plan import PLACEMENT_COLUMNS, FastTier, Placements, Plan, PlanModel, PolicyChoice, TierFormat

GOLDEN = Path(__file__).parent.parent / "golden" / "plan_v1.json"


def make_plan(num_layers=2, num_experts=4, intermediate=64, fast=((0, 1), (1, 3)), **changes):
    layer, expert = (a.ravel() for a in np.meshgrid(np.arange(num_layers), np.arange(num_experts), indexing="ij"))
    layers = np.concatenate([layer, [f[0] for f in fast]]).astype(int)
    experts = np.concatenate([expert, [f[1] for f in fast]]).astype(int)
    tier = np.concatenate([np.zeros(len(layer)), np.ones(len(fast))]).astype(int)
    format_ = TierFormat(weight_format="int4_g32", expert_bytes=(1000,) * num_layers)
    values = {
        "model": PlanModel(
            name="toy", model_type="deepseek_v3", num_layers=num_layers, num_experts=num_experts, top_k=2,
            moe_intermediate_size=intermediate,
        ),
        "tiers": ("node0", "fast0"),
        "placements": Placements.whole(layers, experts, tier, -(-intermediate // 32)),
        "fast_tiers": (FastTier(tier="fast0", slots_per_layer=(1,) * num_layers),),
        "format_of_tier": {"node0": format_, "fast0": format_},
    }  # fmt: skip
    return Plan(**(values | changes))


def test_golden_plan_of_version_1_loads():
    plan = Plan.load(GOLDEN)
    assert plan.version == 1
    assert plan.tiers == ("node0", "node1", "fast0")
    assert plan.policy == PolicyChoice(name="lru", parameters={"second_touch": 1}, seed=7)
    assert plan.upload_budget == 2
    np.testing.assert_array_equal(plan.resident("fast0"), [[True, False, False], [False, False, True]])
    assert plan.prediction == {"predicted_ms_per_token": 1.5}
    # Replica on node1 and an expert cut in two pieces are part of version 1.
    columns = plan.placements.arrays()
    assert ((columns["start"] == 1) & (columns["tier"] == 1)).any()
    # Written before plans said rates: the same plan, by the same name, as then.
    assert plan.node_rates is None
    assert plan.fingerprint() == "df0bded1d8b7d722"


def test_golden_plan_with_rates_loads(tmp_path):
    """What version 1 has said of unequal nodes since it says their rates."""
    plan = Plan.load(GOLDEN.with_name("plan_v1_rates.json"))
    assert plan.node_rates == (30.5, 10.25)
    before = Plan.load(GOLDEN)
    assert plan.fingerprint() == "e6148a8d5e0d1ce3" != before.fingerprint()
    assert plan.model_copy(update={"node_rates": None}) == before
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_golden_plan_round_trips(tmp_path):
    plan = Plan.load(GOLDEN)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.load(tmp_path / "plan.json").fingerprint() == plan.fingerprint()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_round_trip_of_random_plans(tmp_path_factory, num_layers, num_experts, intermediate, seed):
    rng = np.random.default_rng(seed)
    fast = [(int(la), int(rng.integers(num_experts))) for la in range(num_layers)]
    plan = make_plan(num_layers, num_experts, intermediate, fast)
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan


@pytest.mark.parametrize("rates", [(), (1.0, 2.0), (0.0,), (-1.0,), (float("inf"),), (float("nan"),)])
def test_rates_are_of_the_node_tiers(rates):
    with pytest.raises(ValueError, match=r"node_rates are .*, expected 1 numbers above 0"):
        make_plan(node_rates=rates)


def test_prediction_is_not_part_of_the_fingerprint():
    assert make_plan().fingerprint() == make_plan(prediction={"predicted_ms_per_token": 3.0}).fingerprint()
    assert make_plan().fingerprint() != make_plan(keep_home=True, upload_budget=1).fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiers": ("node0", "gpu0")}, "tier is called gpu0, expected node0..N or fast0..F"),
        ({"fast_tiers": ()}, "expected exactly the fast tiers"),
        ({"placements": Placements.whole([0], [0], [0], 2)}, "layer 0 expert 1 has 0 of 2 units"),
        ({"placements": Placements.whole([0, 0], [0, 0], [0, 0], 2)}, "placed twice on the same tier"),
        ({"placements": Placements.whole([0], [9], [0], 2)}, r"placements.expert spans 9..9, expected 0..3"),
        ({"placements": Placements.whole([0], [0], [0], 3)}, "outside"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**changes)


def test_overlapping_pieces_are_refused():
    placements = Placements(layer=(0, 0), expert=(0, 0), start=(0, 1), stop=(2, 3), tier=(0, 0))
    with pytest.raises(ValueError, match="pieces of layer 0 expert 0 overlap"):
        make_plan(1, 1, 96, (), placements=placements)


def test_expert_only_on_the_fast_tier_needs_keep_home_off():
    placements = Placements.whole([0, 0], [0, 1], [0, 1], 2)
    with pytest.raises(ValueError, match="keep_home is true"):
        make_plan(1, 2, 64, (), placements=placements)
    assert not make_plan(1, 2, 64, (), placements=placements, keep_home=False).keep_home


def test_fast_tier_gives_exactly_one_capacity():
    with pytest.raises(ValueError, match="expected exactly one of"):
        FastTier(tier="fast0", slots=3, capacity_bytes=100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ("[]", "has version None, expected 1"),
        (json.dumps({"version": 2}), "has version 2, expected 1: re-plan or update moelab"),
        (json.dumps({"version": 1}), "model: Field required"),
    ],
)
def test_files_that_are_no_plan(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


def test_plan_of_another_model_says_both():
    with pytest.raises(ValueError, match=r"plan is for toy \(2 x 4\); engine is qwen3_moe \(48 x 128\): re-plan"):
        make_plan().check_matches(what="engine", model="qwen3_moe", num_layers=48, num_experts=128)


@pytest.mark.parametrize(
    ("pin", "text"),
    [
        ((0, 2, "fast0"), "layer 0 expert 2 is pinned to fast0, where the plan does not place it whole"),
        ((0, 500, "fast0"), "layer 0 expert 500 is pinned to fast0, where"),
        ((0, 1, "fast7"), r"pinned to fast7, expected one of \('node0', 'fast0'\)"),
    ],
)
def test_a_pin_on_nothing_is_refused(pin, text):
    assert make_plan(pinned=((0, 1, "fast0"), (1, 0, "node0"))).pinned
    with pytest.raises(ValueError, match=text):
        make_plan(pinned=(pin,))


def test_columns_are_converted_once_and_take_no_part_in_equality():
    placements = [Placements.whole(np.zeros(3, int), np.arange(3), 0, 1) for _ in range(2)]
    assert placements[0].arrays()["expert"] is placements[0].arrays()["expert"]
    assert placements[0] == placements[1]
    assert placements[1].model_dump().keys() == set(PLACEMENT_COLUMNS)
    with pytest.raises(ValueError, match="read-only"):
        placements[0].arrays()["expert"][0] = 7
