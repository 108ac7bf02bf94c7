"""generate and record in a lossy mode: what they do, what they say of it, and what they refuse."""

import json

import pytest

from moelab import open_trace
from moelab.cli import main

MODE = ("--slots", "6", "--lossy-cache-bias", "0.5", "--lossy-deferred", "1")


def run(capsys, *arguments):
    code = main([*map(str, arguments)])
    return code, capsys.readouterr()


def test_generate(capsys):
    code, out = run(capsys, "generate", "nano", "The people", "--max-new-tokens", 4, *MODE, "--json")
    assert not code, out.err
    lossy = json.loads(out.out)
    assert lossy["lossy"].startswith("lossy in decode: cache-aware routing with bias 0.5, 1 protected, 1 deferred")
    _, out = run(capsys, "generate", "nano", "The people", "--max-new-tokens", 4, "--slots", 6, "--json")
    exact = json.loads(out.out)
    assert exact["lossy"] is None
    assert lossy["fast_tier"]["misses"] < exact["fast_tier"]["misses"]
    _, out = run(capsys, "generate", "nano", "The people", "--max-new-tokens", 2, *MODE)
    assert "not the model's own results" in out.err


def test_record_with_all_that_can_be_kept(capsys, tmp_path):
    prompt = {"request": 3, "domain": "a", "prompt": "The people", "max_new_tokens": 3}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    arguments = ("--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "trace", "--scores", "--stale-gate")
    code, out = run(capsys, "record", "nano", *arguments, *MODE, "--json")
    assert not code, out.err
    assert "lossy in decode" in json.loads(out.out)["lossy"]
    trace = open_trace(tmp_path / "trace").load()
    assert "lossy in decode" in trace.header.engine
    assert set(trace.extras) == {"candidate_scores", "stale_gate_experts"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lossy-cache-bias", "0.5"), "without a fast tier"),
        (("--lossy-cache-bias", "-1", "--slots", "6"), "cache_bias is -1.0, expected 0"),
        (("--lossy-deferred", "9"), "expected at most 4"),
        (("--lossy-protected", "2"), "without --lossy-cache-bias"),
    ],
    ids=str,
)
def test_what_it_refuses(capsys, arguments, message):
    code, out = run(capsys, "generate", "nano", "x", *arguments)
    assert code
    assert message in out.err
