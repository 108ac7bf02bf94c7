"""generate and record under a fast tier, in process: what they print, and what they refuse."""

import json

import pytest

from moelab import open_trace, shipped
from moelab.cli import main


def run(capsys, *arguments):
    code = main([*map(str, arguments), "--json"])
    return code, capsys.readouterr()


def test_generate_under_slots_and_under_a_plan(capsys):
    for choice in (("--slots", 6, "--policy", "sieve"), ("--plan", shipped("nano/plan.json"))):
        code, out = run(capsys, "generate", "nano", "The people", "--max-new-tokens", 3, *choice)
        assert not code, out.err
        tier = json.loads(out.out)["fast_tier"]
        assert tier["emulated"] is True
        assert tier["policy"] == ("sieve" if "--slots" in choice else "static")
        assert tier["hits"] + tier["misses"] > 0


def test_a_tier_on_paper(capsys):
    code, out = run(capsys, "generate", "nano", "The people", "--max-new-tokens", 3, "--slots", 6, "--late", "never")
    assert not code, out.err
    tier = json.loads(out.out)["fast_tier"]
    assert (tier["late"], tier["link_bytes"], tier["late_copies"]) == (0, 0, "never")
    assert tier["uploads"] > 0


def test_record_under_slots(capsys, tmp_path):
    prompt = {"request": 3, "domain": "a", "prompt": "The people", "max_new_tokens": 3}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    arguments = ("--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "trace", "--slots", 6)
    code, out = run(capsys, "record", "nano", *arguments, "--slot-format", "float32", "--late", "wait")
    assert not code, out.err
    tier = json.loads(out.out)["fast_tier"]
    assert (tier["weight_format"], tier["late_copies"], tier["steps"]) == ("float32", "wait", 3)
    assert "slots of float32 emulated on the CPU, policy lru" in open_trace(tmp_path / "trace").header.engine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "lru"), "without a fast tier"),
        (("--slots", "6", "--plan", "p.json"), "expected one"),
        (("--slots", "49"), "expected 1 to 48"),
        (("--slots", "6", "--policy", "static"), "an empty tier stays empty"),
        (("--slots", "6", "--policy", "nobody"), "--policy is nobody"),
        (("--slots", "6", "--policy", "min_bypass"), "is an oracle"),
        (("--slots", "6", "--slot-format", "Q4_0"), "expected one of int4_g32, bf16, float32"),
    ],
    ids=str,
)
def test_what_it_refuses(capsys, arguments, message):
    code, out = run(capsys, "generate", "nano", "x", *arguments)
    assert code
    assert message in out.err
