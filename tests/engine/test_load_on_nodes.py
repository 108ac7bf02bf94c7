"""Experts loaded straight into the homes of a plan: every byte, every format, packed or not; the same text."""

from __future__ import annotations

import itertools
import json
import os

import numpy as np
import pytest

import moelab
from moelab import PLANNERS
from moelab.cli import main
from moelab.engine.packed.write import pack_model
from moelab.engine.routed_arenas import choose_activation
from moelab.kernels import isa_table
from moelab.kernels.pieces import cut, piece_of
from tests.engine.fast_tier.nano_runs import PROMPTS
from tests.engine.tiny_models import kimi_k26_checkpoint, save_hf, tiny_hf
from tests.migration.nano_plans import fixed_experts, node_plan_of, random_plan, static_plan, with_fast_tier

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


@pytest.fixture(scope="module")
def plain():
    with moelab.load(NANO, virtual_nodes=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(plain):
    return [text.token_ids for text in plain.generate(PROMPTS, 6, stop=())]


def assert_homes(engine, plan, plain):
    """Exactly the plan's copies, each with the bytes that the expert has without a plan."""
    columns = plan.placements.arrays()
    on_node = columns["tier"] < sum(tier.startswith("node") for tier in plan.tiers)
    for number, (layer, whole) in enumerate(zip(engine.routed, plain.routed, strict=True)):
        mine = on_node & (columns["layer"] == number)
        wanted = set(zip(*(columns[name][mine].tolist() for name in ("expert", "start", "stop", "tier")), strict=True))
        held = layer.placement.memory_of_copy
        assert set(held) == wanted
        for (expert, start, stop, _), memory in held.items():
            piece = piece_of(layer.layout, start, stop)
            out = np.empty(piece.num_bytes, np.uint8)
            cut(layer.layout, whole.owner[expert], piece, out)
            np.testing.assert_array_equal(memory.memory, out)


@pytest.mark.parametrize("name", ["round_robin", "mirror", "row_split", "lot"])
def test_every_copy_is_where_the_plan_says(capture, plain, expected, name, monkeypatch):
    from moelab.engine import routed_arenas

    def never(*arguments):
        raise AssertionError("an arena was made beside the homes")

    monkeypatch.setattr(routed_arenas, "new_arenas", never)
    monkeypatch.setattr("moelab.engine.loader.new_arenas", never)
    plan = random_plan(capture, 11) if name == "lot" else node_plan_of(capture, name)
    with moelab.load(NANO, virtual_nodes=2, plan=plan) as engine:
        assert_homes(engine, plan, plain)
        assert [text.token_ids for text in engine.generate(PROMPTS, 6, stop=())] == expected
        read = np.array([layer.bytes_of_node[:2] for layer in engine.routed])
        assert (read > 0).all()
        assert engine.weight_bytes - plain.weight_bytes == sum(
            int(layer.placement.bytes_of_node.sum()) - len(other.owner) * other.owner.stride
            for layer, other in zip(engine.routed, plain.routed, strict=True)
        )


def test_from_a_packed_folder(capture, plain, expected, tmp_path, monkeypatch):
    for module in ("manifest", "read", "write"):
        monkeypatch.setattr(f"moelab.engine.packed.{module}.CHUNK_BYTES", 100_000)  # chunks cut experts
    pack_model(NANO, tmp_path / "packed")
    plan = random_plan(capture, 12)
    with moelab.load(NANO, packed=tmp_path / "packed", virtual_nodes=2, plan=plan) as engine:
        assert_homes(engine, plan, plain)
        assert [text.token_ids for text in engine.generate(PROMPTS, 6, stop=())] == expected


@pytest.mark.parametrize(("kind", "activation"), [("kimi", None), ("kimi", "f32"), ("float32", None)])
def test_formats_of_checkpoints(tmp_path, kind, activation):
    """A tiny K2.6 (packed int4, also widened to float32) and a float32 model, experts cut and copied by lot."""
    if kind == "kimi":
        kimi_k26_checkpoint(tmp_path / "model", tmp_path / "twin", seed=3)
    else:
        save_hf(tiny_hf(4, moe_intermediate_size=96), tmp_path / "model")
    with moelab.load(tmp_path / "model", activation=activation, virtual_nodes=2) as plain:
        from moelab.planner import empty

        base = empty(plain.trace_header(), slots_per_layer=1, policy="lru")
        rng, rows = np.random.default_rng(1), []
        for layer in range(base.model.num_layers):
            for expert in range(base.model.num_experts):
                nodes = rng.permutation(2)[: rng.integers(1, 3)]
                ends = [0, base.num_units]
                if base.num_units > 1 and rng.random() < 0.5:
                    ends.insert(1, int(rng.integers(1, base.num_units)))
                rows += [(layer, expert, a, b, int(n)) for a, b in itertools.pairwise(ends) for n in nodes]
        columns = dict(zip(("layer", "expert", "start", "stop", "tier"), zip(*rows, strict=True), strict=True))
        home = base.format_of_tier["node0"]
        plan = type(base).model_validate(
            base.model_dump()
            | {
                "tiers": ("node0", "node1"), "placements": columns, "fast_tiers": (), "policy": {},
                "format_of_tier": {"node0": home, "node1": home},
            }
        )  # fmt: skip
        tokens = [3, 9, 27, 81]
        logits = plain.forward(tokens)
        with moelab.load(tmp_path / "model", activation=activation, virtual_nodes=2, plan=plan) as engine:
            assert_homes(engine, plan, plain)
            np.testing.assert_array_equal(engine.forward(tokens), logits)
            assert engine.activation == choose_activation(engine.weight_format, activation)


def test_with_a_fast_tier_and_without_homes(capture, expected):
    base = with_fast_tier(node_plan_of(capture, "row_split"))
    with moelab.load(NANO, virtual_nodes=2, plan=base) as engine:
        assert engine.fast_tier.num_slots == 36
        engine.generate(PROMPTS, 6, stop=())
        assert engine.fast_tier.report().hits > 0
    experts = fixed_experts(capture)
    kept = static_plan(node_plan_of(capture, "round_robin"), experts, keep_home=True)
    gone = static_plan(node_plan_of(capture, "round_robin"), experts, keep_home=False)
    texts = []
    for plan in (kept, gone):
        with moelab.load(NANO, virtual_nodes=2, plan=plan) as engine:
            texts.append([text.token_ids for text in engine.generate(PROMPTS, 6, stop=())])
    assert texts[0] == texts[1]
    with moelab.load(NANO, virtual_nodes=2, plan=gone) as engine:
        held = sum(int(layer.placement.bytes_of_node.sum()) for layer in engine.routed)
        assert held == (6 * 48 - len(experts)) * engine.expert_bytes
    with pytest.raises(ValueError, match="late is never"):
        moelab.load(NANO, virtual_nodes=2, plan=gone, late="never")


def test_refusals(capture):
    plan = node_plan_of(capture, "round_robin")
    with pytest.raises(ValueError, match="workers know no nodes: choose a native isa"):
        moelab.load(NANO, plan=plan, isa="numba", virtual_nodes=2)
    other = plan.model_copy(update={"model": plan.model.model_copy(update={"top_k": 3})})
    with pytest.raises(ValueError, match="top-3"):
        moelab.load(NANO, plan=other, virtual_nodes=2)
    three = PLANNERS["round_robin"](capture, nodes=3, phase="decode", score=False)
    with pytest.raises(ValueError, match="node0, node1, node2; expected at most the 2 nodes here"):
        moelab.load(NANO, plan=three, virtual_nodes=2)


def test_command(capture, tmp_path, capsys):
    node_plan_of(capture, "row_split").save(tmp_path / "plan.json")
    command = ["generate", "nano", "The old", "--max-new-tokens", "6", "--json"]
    assert main(command) == 0
    text = json.loads(capsys.readouterr().out)["generations"][0]["text"]
    assert main([*command, "--plan", str(tmp_path / "plan.json"), "--virtual-nodes", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["generations"][0]["text"] == text
    assert main([*command, "--plan", str(tmp_path / "plan.json")]) == 0, "nodes that the machine has not are virtual"
    assert json.loads(capsys.readouterr().out)["generations"][0]["text"] == text
