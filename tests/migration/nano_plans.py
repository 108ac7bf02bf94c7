"""Plans of nano for two nodes, with and without a fast tier, for the tests of `apply`."""

from __future__ import annotations

import os

import numpy as np
import pytest

import moelab
from moelab import PLANNERS
from moelab.domain.plan import FastTier, Plan
from moelab.kernels import isa_table

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
NEEDS = [
    pytest.mark.skipif(not NATIVE, reason="native kernels are not built"),
    pytest.mark.skipif(CORES < 2, reason="one core only"),
]
NANO = moelab.shipped("nano/model")


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
