"""`moelab export`: plans as other engines read them, told back from the file alone, or refused with one line."""

import json

import numpy as np
import pytest

from moelab import PLANNERS
from moelab.cli import export, main
from moelab.domain.model import ModelSpec
from tests.seeded_traces import seeded_trace

MODEL = "deepseek-v2-lite"  # layer 0 of 27 is dense


@pytest.fixture(scope="module")
def trace():
    spec = ModelSpec.preset(MODEL)
    return seeded_trace(
        5, num_layers=spec.num_moe_layers, num_experts=spec.n_routed_experts, top_k=spec.num_experts_per_tok
    )


def exported(capsys, plan, *arguments):
    assert main(["export", str(plan), *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("model", [None, MODEL])
def test_eplb_table(trace, tmp_path, capsys, model):
    plan = PLANNERS["replicate"](trace, nodes=2, extra_memory=0.2, score=False)
    plan.save(tmp_path / "plan.json")
    out = tmp_path / "table.json"
    says = exported(capsys, tmp_path / "plan.json", "--format", "eplb-table", "--out", out,
                    *(["--model", model] if model else []))  # fmt: skip
    document = json.loads(out.read_text())
    assert list(document) == ["physical_to_logical_map"]  # SGLang takes other keys for arguments
    table = np.array(document["physical_to_logical_map"])
    first = 1 if model else 0
    assert len(table) == first + 26
    assert says["physical_experts"] == table.shape[1] == 64 + says["redundant_experts"]
    columns, half = plan.placements.arrays(), table.shape[1] // 2
    for layer in range(26):
        for node, part in enumerate((table[first + layer, :half], table[first + layer, half:])):
            here = (columns["layer"] == layer) & (columns["tier"] == node)
            assert set(part.tolist()) == set(columns["expert"][here].tolist())
    assert says["slots_that_repeat_the_devices_own_copy"] == 26 * table.shape[1] - len(plan.placements)


def test_ktransformers(trace, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    plan = PLANNERS["frequency"](trace, slots_per_layer=5, score=False)
    plan.save(tmp_path / "plan.json")
    out = tmp_path / "stats.pt"
    says = exported(capsys, tmp_path / "plan.json", "--format", "ktransformers", "--model", MODEL, "--out", out)
    assert says["start_with"].endswith("--kt-num-gpu-experts 5")
    counts = torch.load(out, weights_only=True)["logical_count"].sum(0).numpy()
    assert counts.shape == (27, 64)
    chosen = np.zeros(27 * 64, bool)  # its strategy: the globally largest, five for each of 26 layers
    chosen[np.argsort(-counts.ravel(), kind="stable")[: 5 * 26]] = True
    np.testing.assert_array_equal(chosen.reshape(27, 64)[1:], plan.resident("fast0"))
    assert not chosen.reshape(27, 64)[0].any()


def test_refusals(trace, tmp_path, capsys):
    fast = PLANNERS["frequency"](trace, slots_per_layer=5, score=False)
    fast.save(tmp_path / "fast.json")

    def refused(*arguments):
        assert main(["export", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    out = ["--out", tmp_path / "x.json"]
    assert "equal devices only" in refused(tmp_path / "fast.json", "--format", "eplb-table", *out)
    assert "give --model" in refused(tmp_path / "fast.json", "--format", "ktransformers", *out)
    assert "ends in .pt" in refused(tmp_path / "fast.json", "--format", "ktransformers", "--model", MODEL, *out)
    words = refused(tmp_path / "fast.json", "--format", "ktransformers", "--model", "kimi-k2.6", *out)
    assert "26 x 64" in words
    assert "60 x 384" in words
    assert "does not exist" in refused(tmp_path / "none.json", "--format", "eplb-table", *out)
    assert "its folder does not exist" in refused(
        tmp_path / "fast.json", "--format", "eplb-table", "--out", tmp_path / "no" / "x"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["fast.json"]


def test_a_file_that_says_something_else_is_told():
    with pytest.raises(RuntimeError, match="layer 1 expert 0"):
        export._check(np.zeros((2, 2), int), np.array([[0, 0], [1, 0]]), "f")
