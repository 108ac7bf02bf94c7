"""Preview and full figures are those of planners and ``simulate`` called by hand; its interval holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import moelab
from moelab.domain.machine import FastTierDevice, Machine, NumaNode
from moelab.exploration import Draft, Edit, Exploration, Settings
from moelab.exploration.machine_of_nodes import machine_of_nodes
from moelab.exploration.quick_placement import EXACT
from moelab.exploration.sample import stretches
from moelab.exploration.settings import fitting, planners, policies
from moelab.exploration.step_seconds import step_seconds
from moelab.planner.static_plan import split
from tests.seeded_traces import seeded_trace

MIB = 2**20
LAYERS, EXPERTS = 3, 16


def trace_of(seed=0, **options):
    return seeded_trace(
        seed, num_layers=LAYERS, num_experts=EXPERTS, top_k=3, expert_bytes=(MIB, 2 * MIB, MIB),
        **{"num_requests": 48, "decode_tokens": 20, **options},
    )  # fmt: skip


def machine_with(num_nodes, has_fast=True):
    nodes = tuple(
        NumaNode(name=f"node{n}", cores=(n,), memory_bytes=10**9, read_gb_per_s={1: 10.0 + 5 * n})
        for n in range(num_nodes)
    )
    fast = FastTierDevice(name="fast0", device="test", memory_bytes=10**8, read_gb_per_s=80.0, link_gb_per_s=4.0)
    return Machine(
        name="test", source="preset", nodes=nodes, fast_tiers=(fast,) * has_fast, layer_overhead_s=1e-5,
        kernel_efficiency={"avx2/int4_g32/int8": 0.8},
    )  # fmt: skip


CASES = [
    Settings(4),
    Settings(4, policy="lru"),
    Settings(3, policy="admit_ema_lfu", planner="empty"),
    Settings(4, planner="uniform"),
    Settings(0),
    Settings(0, 2, 0.25, "mirror"),
    Settings(0, 2, 0.0, "row_split"),
    Settings(0, 2, 0.25, "replicate"),
    Settings(2, 2, 0.25, "joint"),
]


@pytest.mark.parametrize("settings", CASES, ids=lambda s: f"{s.planner}-{s.nodes}-{s.policy}")
@pytest.mark.parametrize("has_fast", [True, False])
def test_full_is_simulate(settings, has_fast):
    trace, machine = trace_of(1), machine_with(settings.nodes, has_fast)
    exploration = Exploration(trace, machine)
    outcome = exploration.full(settings)
    _, test, _ = split(trace, held_out=0.25, seed=0)
    expected = moelab.simulate(test, outcome.plan, machine, phase="decode", efficiency=0.8, progress=False)
    got = outcome.figures
    assert got.tok_per_s == pytest.approx(expected.prediction["predicted_tok_per_s"], rel=1e-9)
    assert got.ms_per_token == pytest.approx(expected.prediction["predicted_ms_per_token"], rel=1e-9)
    assert got.reads_per_layer_step == pytest.approx(expected.reads_per_layer_step)
    assert got.hit_rate_per_request == expected.hit_rate_per_request
    assert got.bytes_of_node == pytest.approx(
        {name: value / expected.num_tokens for name, value in expected.bytes_of_node.items()}
    )
    assert not got.is_preview
    assert got.num_clusters == 12
    low, high = got.tok_per_s_interval
    assert low * (1 - 1e-9) <= got.tok_per_s <= high * (1 + 1e-9)
    assert step_seconds(expected, machine, 0.8).shape == (got.num_steps,)
    if outcome.plan.policy.name == "static":
        assert outcome.plan.fingerprint() == exploration.plan(settings).fingerprint()


@pytest.mark.parametrize("settings", CASES, ids=lambda s: f"{s.planner}-{s.nodes}-{s.policy}")
def test_preview_is_simulate_of_the_sample(settings):
    trace, machine = trace_of(2), machine_with(settings.nodes)
    exploration = Exploration(trace, machine, preview_tokens=150)
    outcome = exploration.preview(settings)
    part = outcome.part
    assert part.is_sample
    assert part.trace.num_tokens <= (150 if settings.policy == "static" else 300)
    expected = moelab.simulate(
        part.trace, outcome.plan, machine, phase="decode", efficiency=0.8, requests=part.requests, progress=False
    )  # fmt: skip
    assert outcome.figures.num_tokens <= 150
    assert outcome.figures.tok_per_s == pytest.approx(expected.prediction["predicted_tok_per_s"], rel=1e-9)
    assert outcome.figures.reads_per_layer_step == pytest.approx(expected.reads_per_layer_step)
    assert outcome.figures.is_preview
    assert ("stand-in" in outcome.figures.placed_by) == (settings.planner not in EXACT)
    assert outcome.figures.stands_in_for == ("" if settings.planner in EXACT else settings.planner)
    if settings.planner in EXACT:
        searched = Draft.of_plan(exploration.plan(settings))
        for name in ("masks", "fast"):
            np.testing.assert_array_equal(getattr(outcome.draft, name), getattr(searched, name))
    else:  # once the planner has searched, previews rest on its placement
        exploration.full(settings)
        found = exploration.preview(settings).figures
        assert (found.placed_by, found.stands_in_for) == (settings.planner, "")


@pytest.mark.parametrize(
    "settings",
    [
        Settings(4), Settings(4, policy="lru"), Settings(4, policy="lru", planner="empty"), Settings(4, policy="lfu"),
        Settings(4, policy="admit_ema_lfu"), Settings(0, 2, 0.1, "replicate"),
    ],
    ids=lambda s: f"{s.planner}-{s.policy}",
)  # fmt: skip
def test_interval_of_the_preview_covers_the_full_figure(settings):
    """24 stretches, warmed up for policies that remember: of 40 samples the 95% intervals miss rarely."""
    exploration = Exploration(trace_of(3, num_requests=80, decode_tokens=40), machine_with(settings.nodes))
    full, missed, ratio = exploration.full(settings).figures.tok_per_s, 0, []
    for seed in range(40):
        exploration.preview_part = stretches(exploration.test, 300, seed)
        exploration.warmed_part = stretches(exploration.test, 300, seed, warm_tokens=300)
        found = exploration.preview(settings).figures
        assert not found.stands_in_for
        low, high = found.tok_per_s_interval
        missed += not low <= full <= high
        ratio.append(found.tok_per_s / full)
    assert missed <= 7, f"{missed} of 40 intervals miss the full figure"
    assert abs(np.mean(ratio) - 1) < 0.015, "no bias to speak of"


@pytest.mark.parametrize("policy", ["static", "lru"])
def test_water_filled_fills_the_tier_that_static_never_would(policy):
    exploration = Exploration(trace_of(1), machine_with(1))
    found = exploration.full(Settings(4, policy=policy, planner="water_filled"))
    nothing = exploration.full(Settings(0)).figures
    assert found.figures.reads_per_layer_step < nothing.reads_per_layer_step
    assert found.figures.tok_per_s > nothing.tok_per_s
    slots = np.asarray(found.plan.fast_tiers[0].slots_per_layer)
    assert slots.sum() == 4 * LAYERS
    if policy == "static":
        np.testing.assert_array_equal(found.plan.resident("fast0").sum(1), slots)
        loads = exploration.loads
        for layer in range(LAYERS):
            hottest = np.argsort(-loads[layer], kind="stable")[: slots[layer]]
            assert found.plan.resident("fast0")[layer, hottest].all()
        assert found.figures.placed_by == "water_filled, filled with the hottest"
        even = exploration.full(Settings(4)).figures.reads_per_layer_step
        assert found.figures.reads_per_layer_step == pytest.approx(even, rel=0.2), "near what equal slots give"


def test_a_model_that_was_not_recorded_is_refused():
    with pytest.raises(ValueError, match=r"is 3 layers x 16 experts, model kimi-k2\.6 is 60 x 384"):
        Exploration(trace_of(1), machine_with(1), "kimi-k2.6")


def test_few_requests_have_no_interval():
    exploration = Exploration(trace_of(4, num_requests=4), machine_with(1))
    figures = exploration.full(Settings(4)).figures
    assert figures.tok_per_s > 0
    assert figures.tok_per_s_interval is None


def replace_rates(machine, rate):
    nodes = tuple(node.model_copy(update={"read_gb_per_s": {1: rate}}) for node in machine.nodes)
    return machine.model_copy(update={"nodes": nodes})


def test_work_can_be_ended():
    exploration, told = Exploration(trace_of(6), machine_with(1)), []

    def stop(what, share):
        told.append((what, share))
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exploration.full(Settings(4), on_progress=stop)
    assert told[0] == ("frequency searches", 0.0)
    shares = []
    exploration.full(Settings(4), on_progress=lambda what, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_why_there_is_no_time():
    trace = trace_of(7)
    assert "no machine was given" in Exploration(trace).preview(Settings(4)).figures.why_no_time
    blind = Machine(name="blind", source="detected", nodes=(NumaNode(name="node0", cores=(0,), memory_bytes=1),))
    assert "no read rates" in Exploration(trace, blind).preview(Settings(4)).figures.why_no_time
    nameless = replace(trace, header=trace.header.model_copy(update={"expert_bytes": (0,) * LAYERS}))
    figures = Exploration(nameless, machine_with(1)).preview(Settings(4)).figures
    assert "bytes of an expert" in figures.why_no_time
    assert figures.tok_per_s is None
    assert figures.reads_per_layer_step > 0
    assert Exploration(nameless, machine_with(1), expert_bytes=MIB).preview(Settings(4)).figures.tok_per_s > 0


def test_plan_by_hand_is_saved_and_says_so(tmp_path):
    exploration = Exploration(trace_of(8), machine_with(1))
    chosen = np.zeros((LAYERS, EXPERTS), bool)
    chosen[:, 15] = True
    edits = [Edit("pin", chosen)]
    outcome = exploration.full(Settings(4), edits)
    assert outcome.plan.resident("fast0")[:, 15].all()
    assert outcome.plan.pinned == tuple((layer, 15, "fast0") for layer in range(LAYERS))
    assert outcome.plan.planner["edits"] == ["pin 3 experts"]
    outcome.plan.save(tmp_path / "plan.json")
    assert moelab.Plan.load(tmp_path / "plan.json") == outcome.plan


def test_settings_refuse_and_fit():
    with pytest.raises(ValueError, match="planner is 'joint' with 1 nodes"):
        Settings(4, planner="joint")
    with pytest.raises(ValueError, match="expected static: no cost model"):
        Settings(4, 2, 0.0, "joint", "lru")
    assert fitting({"slots_per_layer": 4, "nodes": 2, "planner": "frequency", "policy": "lru"}) == Settings(
        4, 2, 0.0, "joint", "static"
    )
    assert fitting({"slots_per_layer": 0, "nodes": 2, "extra_memory": 3.0, "planner": "frequency"}) == Settings(
        0, 2, 1.0, "replicate"
    )
    with pytest.raises(ValueError, match="planner is 'nobody'"):
        fitting({"planner": "nobody"})
    assert "joint" in planners(2, 4)
    assert "eam" not in policies(2)
    assert "lru" in policies(1)


def test_machine_of_more_nodes_is_virtual():
    machine = machine_with(1)
    divided = machine_of_nodes(machine, 4)
    assert divided.virtual
    assert sum(node.best_read_gb_per_s for node in divided.nodes) == pytest.approx(10.0)
    assert [node.name for node in divided.nodes] == ["node0", "node1", "node2", "node3"]
    assert machine_of_nodes(machine_with(2), 1).nodes[0].name == "node0"
    with pytest.raises(ValueError, match="3 nodes on test, which has 2"):
        machine_of_nodes(machine_with(2), 3)


@pytest.mark.parametrize(("planner", "nodes", "rates"), [
    ("anneal", 2, (10.0, 15.0)), ("mirror", 2, (10.0, 15.0)), ("anneal", 4, None), ("frequency", 1, None),
])  # fmt: skip
def test_a_plan_says_the_rates_of_the_nodes_that_it_was_made_for(planner, nodes, rates):
    """Those that the planner's own plan has; nodes that the machine is divided into have none."""
    trace, machine = trace_of(), machine_with(2)
    exploration = Exploration(trace, machine=machine)
    settings = Settings(4, planner=planner) if nodes == 1 else Settings(0, nodes, 0.25, planner)
    assert exploration.plan(settings, searched=False).node_rates == rates, "the stand-in while a planner searches"
    plan = exploration.full(settings).plan
    assert plan.node_rates == rates
    if nodes == 2:
        own = moelab.PLANNERS[planner](trace, nodes=2, extra_memory=0.25, machine=machine, score=False)
        assert plan.node_rates == own.node_rates
