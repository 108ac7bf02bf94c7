"""A .npz of from_arrays' arguments opens as the trace that from_arrays gives, in Python and at the command line."""

import json

import numpy as np
import pytest

import moelab
from moelab.cli import main
from moelab.formats import FORMATS
from moelab.sources import open_source


def arrays(seed, num_tokens=120, num_layers=3, num_experts=16, top_k=2):
    draw = np.random.default_rng(seed)
    ids = draw.random((num_tokens, num_layers, num_experts)).argsort(-1)[:, :, :top_k]
    return {
        "experts": ids, "gate_weights": draw.random(ids.shape), "num_experts": num_experts,
        "request": np.repeat(np.arange(6), num_tokens // 6), "num_prompt_tokens": draw.integers(1, 5, 6),
        "domain": np.repeat(["a", "b"], num_tokens // 2), "expert_bytes": [1000, 2000, 3000], "model": "mine",
        "gate_weight_kind": "softmax_over_all", "licence": "my own",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_is_what_from_arrays_gives(seed, tmp_path):
    said = arrays(seed)
    for number, keys in enumerate((list(said), ["experts"], ["experts", "request", "model"])):
        path = tmp_path / f"{number}.npz"
        chosen = {key: said[key] for key in keys}
        np.savez(path, **chosen)
        assert [name for name, module in FORMATS.items() if module.matches(path)] == ["arrays_npz"]
        trace = open_source(path).load()
        expected = moelab.Trace.from_arrays(**{"provenance": f"file {path.name}", **chosen})
        assert trace.header == expected.header
        assert (trace.experts == expected.experts).all()
        assert (trace.gate_weights == expected.gate_weights).all()
        for column in ("step", "request", "position", "phase", "domain", "token_id"):
            assert (getattr(trace.tokens, column) == getattr(expected.tokens, column)).all()


def test_goes_to_a_plan_at_the_command_line(tmp_path, capsys):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **arrays(0))
    main(["plan", str(path), "--nodes", "2", "--out", str(tmp_path / "plan.json"), "--json"])
    assert json.loads(capsys.readouterr().out)["planner"]["name"] == "anneal"
    assert moelab.Plan.load(tmp_path / "plan.json").model.name == "mine"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts": None}, r"holds gate_weights.*expected experts"),
        ({"weights": np.zeros(3)}, "rename the keys"),
        ({"request": np.array([object()] * 120)}, "not a readable .npz"),
        ({"num_experts": 3}, r"bad.npz: experts holds ids from 0 to 15"),
        ({"gate_weight_kind": "guess"}, r"bad.npz: gate_weight_kind is 'guess', expected 'softmax_over_all'"),
        ({"request": np.zeros(5, int)}, r"bad.npz: request has 5 entries"),
    ],
)
def test_other_files_are_refused(change, words, tmp_path):
    said = {key: value for key, value in (arrays(1) | change).items() if value is not None}
    np.savez(tmp_path / "bad.npz", **said)
    with pytest.raises(ValueError, match=words):
        open_source(tmp_path / "bad.npz")


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(2))
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"hello", b"", data[:1200] + bytes([data[1200] ^ 1]) + data[1201:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"mine.npz is not a readable .npz"):
            open_source(path)
