"""Gap, its interval and regret, of previews and full figures alike, against loops over tokens and all choices."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import moelab
from moelab.analysis.bootstrap import NUM_SAMPLES, basic_interval, resamples
from moelab.dispatch import assign
from moelab.domain.plan import PolicyChoice
from moelab.domain.trace import NO_EXPERT, Phase
from moelab.exploration import Exploration, Settings
from moelab.exploration.map_layers import regret_layer
from moelab.exploration.sample import stretches
from tests.exploration.test_explore import EXPERTS, LAYERS, MIB, machine_with, replace_rates, trace_of

SIZES = np.array([MIB, 2 * MIB, MIB])
NODE_SETTINGS = [
    Settings(0, 2, 0.3, "round_robin"), Settings(0, 2, 0.1, "replicate"), Settings(0, 3, 0.7, "replicate"),
    Settings(0, 2, 1.0, "mirror"), Settings(0, 2, 0.0, "row_split"), Settings(0, 2, 0.2, "split_some"),
    Settings(3, 2, 0.25, "joint"),
]  # fmt: skip


def label(settings):
    return f"{settings.planner}-{settings.nodes}-{settings.slots_per_layer}"


def jobs_of(plan):
    """For every (layer, expert) its pieces: (nodes as bits, bytes, part)."""
    columns, nodes, masks = plan.placements.arrays(), [t for t in plan.tiers if t.startswith("node")], {}
    on_fast = plan.resident("fast0") if "fast0" in plan.tiers else np.zeros((LAYERS, EXPERTS), bool)
    for layer, expert, start, stop, tier in zip(
        *(columns[name] for name in ("layer", "expert", "start", "stop", "tier")), strict=True
    ):
        name = plan.tiers[tier]
        if name in nodes and not on_fast[layer, expert]:
            key = (int(layer), int(expert), int(start), int(stop))
            masks[key] = masks.get(key, 0) | 1 << nodes.index(name)
    out = {}
    for (layer, expert, start, stop), mask in sorted(masks.items()):
        size = SIZES[layer] * stop // plan.num_units - SIZES[layer] * start // plan.num_units
        out.setdefault((layer, expert), []).append((mask, size, (stop - start) / plan.num_units))
    return out


def layer_steps(trace):
    """(step, layer, distinct experts, rising) of every layer-step of decode."""
    for step in np.unique(trace.tokens.step):
        rows = trace.tokens.step == step
        if (trace.tokens.phase[rows] == Phase.DECODE).all():
            for layer in range(LAYERS):
                ids = np.unique(trace.experts[rows, layer])
                yield step, layer, ids[ids != NO_EXPERT].tolist()


def naive(trace, plan, machine, num_nodes):
    """(bytes of the fullest node, the least, regret [L, E]), sums over layer-steps; ``least`` as ``bound`` says it."""
    rates = np.array([node.best_read_gb_per_s for node in machine.nodes])
    slowness, weight, jobs = rates[0] / rates, rates / rates.mean(), jobs_of(plan)
    is_cut = any(part < 1 for pieces in jobs.values() for _, _, part in pieces)
    reached, least, regret, steps = [], [], np.zeros((LAYERS, EXPERTS)), set()
    for step, layer, ids in layer_steps(trace):
        steps.add(int(step))
        mine = [(expert, *piece) for expert in ids for piece in jobs.get((layer, expert), [])]
        masks, sizes = [mask for _, mask, _, _ in mine], [size for _, _, size, _ in mine]
        loads = np.zeros(num_nodes)
        chosen = assign(masks, num_tiers=num_nodes, sizes=sizes, slowness=slowness).tier_of if mine else []
        np.add.at(loads, np.array(chosen, int), sizes)
        tiers = [[n for n in range(num_nodes) if mask >> n & 1] for mask in masks]
        best = min(
            max(sum(s for s, at in zip(sizes, choice, strict=True) if at == n) / weight[n] for n in range(num_nodes))
            for choice in product(*tiers)
        )
        assert (loads / weight).max() == pytest.approx(best), "copies are chosen as well as can be"
        bound = sum(sizes) / num_nodes
        if not is_cut and (rates == rates[0]).all():
            bound = -(-round(sum(sizes) / SIZES[layer]) // num_nodes) * SIZES[layer]
        reached.append(best)
        least.append(bound)
        full = [n for n in range(num_nodes) if loads[n] * slowness[n] == (loads * slowness).max()]
        theirs = [(expert, part) for (expert, _, _, part), at in zip(mine, chosen, strict=True) if at in full]
        for expert, part in theirs:
            share = part / sum(each for _, each in theirs)
            regret[layer, expert] += share * (best - bound) / SIZES[layer]
    return np.array(reached), np.array(least), regret * 1000 / len(steps)


@pytest.mark.parametrize("settings", NODE_SETTINGS, ids=label)
@pytest.mark.parametrize("rate", [None, 10.0])
@pytest.mark.parametrize("is_preview", [True, False])
def test_of_several_nodes_is_a_loop(settings, rate, is_preview):
    machine = machine_with(settings.nodes)
    machine = machine if rate is None else replace_rates(machine, rate)
    exploration = Exploration(trace_of(5, num_requests=40, decode_tokens=8), machine, preview_tokens=80)
    outcome = exploration.preview(settings) if is_preview else exploration.full(settings)
    part = exploration.preview_part if is_preview else outcome.part
    assert part.is_sample == is_preview
    reached, least, regret = naive(part.trace, outcome.plan, machine, settings.nodes)
    assert outcome.figures.bound == pytest.approx(least.mean())
    assert outcome.figures.gap == pytest.approx(reached.sum() / least.sum() - 1, abs=1e-9)
    np.testing.assert_allclose(outcome.regret, regret, atol=1e-6)
    steps = len(reached) / LAYERS
    total = ((reached - least).reshape(-1, LAYERS) / SIZES).sum() * 1000 / steps
    assert outcome.regret.sum() == pytest.approx(total, abs=1e-6), "regret of all experts is the gap"
    if settings == NODE_SETTINGS[1]:
        assert outcome.regret.max() > 0


@pytest.mark.parametrize("policy", ["static", "lru", "admit_ema_lfu"])
@pytest.mark.parametrize("is_preview", [True, False])
def test_of_one_node_is_the_oracle_on_the_same_steps(policy, is_preview):
    exploration = Exploration(trace_of(5), machine_with(1), preview_tokens=150)
    settings = Settings(4, policy=policy)
    outcome = exploration.preview(settings) if is_preview else exploration.full(settings)
    oracle = "min_demand" if policy == "lru" else "min_bypass"
    plan = outcome.plan.model_copy(update={"policy": PolicyChoice(name=oracle)})
    part = outcome.part
    assert (part.num_warm > 0) == (is_preview and policy != "static")
    options = {"phase": "decode", "requests": part.requests, "progress": False}
    best = moelab.simulate(part.trace, plan, **options)
    mine = moelab.simulate(part.trace, outcome.plan, **options)
    figures = outcome.figures
    assert figures.bound_of == f"misses per layer-step of {oracle}"
    assert figures.bound == pytest.approx(best.misses_per_layer_step)
    assert figures.gap == pytest.approx(mine.misses_per_layer_step / best.misses_per_layer_step - 1)
    num_steps = part.requests.steps_of_phase("decode").sum()
    np.testing.assert_allclose(outcome.regret, (mine.reads - best.reads) * 1000 / num_steps)
    low, high = figures.gap_interval
    assert low <= figures.gap <= high


@pytest.mark.parametrize("settings", [Settings(4, policy="lru"), NODE_SETTINGS[1]], ids=label)
def test_interval_draws_stretches_again(settings):
    machine = machine_with(settings.nodes)
    exploration = Exploration(trace_of(6), machine, preview_tokens=200)
    outcome = exploration.preview(settings)
    part, trace = outcome.part, outcome.part.trace
    if settings.nodes > 1:
        reached, least, _ = (np.array(each) for each in naive(trace, outcome.plan, machine, settings.nodes))
    else:
        oracle = outcome.plan.model_copy(update={"policy": PolicyChoice(name="min_demand")})
        options = {"phase": "decode", "requests": part.requests, "progress": False}
        runs = [moelab.simulate(trace, plan, **options) for plan in (outcome.plan, oracle)]
        decode = runs[0].phase_of_step == 1
        reached, least = (run.counts[decode][:, :, 1].ravel() for run in runs)  # misses
    cluster = np.repeat(part.cluster[part.requests.steps_of_phase("decode")], LAYERS)
    there = np.unique(cluster)
    over, under = ([values[cluster == c].sum() for c in there] for values in (reached, least))
    weights = resamples(len(there), NUM_SAMPLES, 0)
    value = np.array(reached.sum() / least.sum())
    low, high = basic_interval(value, (weights @ over) / (weights @ under))
    assert outcome.figures.gap_interval == pytest.approx((low - 1, high - 1), rel=1e-5)
    assert low - 1 < outcome.figures.gap < high - 1


@pytest.mark.parametrize("settings", [Settings(4), Settings(0, 2, 0.4, "replicate")], ids=label)
def test_interval_of_the_preview_covers_the_full_gap(settings):
    exploration = Exploration(trace_of(3, num_requests=80, decode_tokens=40), machine_with(settings.nodes))
    full, missed = exploration.full(settings).figures.gap, 0
    for seed in range(40):
        exploration.preview_part = stretches(exploration.test, 300, seed)
        found = exploration.preview(settings)
        assert found.figures.placed_by == settings.planner, "the placement of the full figure"
        low, high = found.figures.gap_interval
        missed += not low <= full <= high
    assert missed <= 7, f"{missed} of 40 intervals miss the full gap"


def test_nothing_bounds_a_prefetcher():
    trace = trace_of(7)
    outcome = Exploration(trace, machine_with(1)).preview(Settings(4, policy="prefetch_previous"))
    assert (outcome.figures.bound, outcome.figures.gap, outcome.figures.gap_interval) == (None, None, None)
    assert outcome.regret is None
    layer = regret_layer(outcome.regret, outcome.draft, outcome.part.is_sample)
    assert np.isnan(layer.values).all()


def test_layer_says_what_it_counts():
    trace, settings = trace_of(8), Settings(0, 2, 0.0, "round_robin")
    outcome = Exploration(trace, machine_with(2), preview_tokens=150).preview(settings)
    layer = regret_layer(outcome.regret, outcome.draft, outcome.part.is_sample)
    np.testing.assert_array_equal(layer.values, outcome.regret.astype(np.float32))
    assert layer.label == "reads of the fullest node beyond the bound, per 1,000 steps of the sample"
    one = Exploration(trace, machine_with(1)).full(Settings(4))
    layer = regret_layer(one.regret, one.draft, one.part.is_sample)
    assert layer.label == "reads beyond the oracle's, per 1,000 steps"
    assert layer.limits[0] < 0 < layer.limits[1], "an oracle reads some experts more often"


def test_without_bytes_there_is_no_gap_of_nodes():
    trace = trace_of(9)
    nameless = replace(trace, header=trace.header.model_copy(update={"expert_bytes": (0,) * LAYERS}))
    outcome = Exploration(nameless, machine_with(2)).preview(Settings(0, 2, 0.0, "round_robin"))
    assert outcome.figures.gap is None
    assert outcome.figures.bound_of.endswith("which is 0 here: no gap can be told")
    assert (outcome.regret == 0).all()
