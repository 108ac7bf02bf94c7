"""The placement study: scores are the plans' own, every planner ran, the page is written between its markers."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from moelab.cli import main
from moelab.findings.placement_page import BEGIN, END, placement_tables, update_placement_page
from moelab.findings.placement_study import EXTRA_MEMORY, OURS, placement_study
from moelab.planner import NODE_PLANNERS, anneal
from moelab.store import TraceWriter
from tests.seeded_traces import seeded_trace


@pytest.fixture(scope="module")
def small():
    trace = seeded_trace(2, num_layers=2, num_experts=16, top_k=4, num_requests=24, decode_tokens=5)
    return placement_study("small", trace, certificate_s=5)


def test_every_planner_ran_and_scores_are_the_plans_own(small):
    assert {name for name, _ in small.placed} == set(NODE_PLANNERS) - {"joint", "interleave", "fastest"}
    plan = anneal(small.trace, nodes=2, extra_memory=0.25, held_out=0.5, phase="decode")
    one = small.placed["anneal", 0.25]
    assert one.score.mean == plan.prediction["heldout_mean_max"]
    assert one.score.interval() == plan.prediction["heldout_mean_max_interval"]
    assert one.in_sample_ratio == plan.prediction["train_ratio_to_ideal"]
    assert small.best(0.25, OURS).score.mean <= one.score.mean
    assert small.has_intervals
    assert set(small.certificates) == set(EXTRA_MEMORY)
    assert small.joint["train_mean_max"] <= small.joint["hottest_first_train_mean_max"]


def test_prefill_is_taken_token_by_token_and_says_so():
    trace = seeded_trace(2, num_layers=2, num_experts=16, top_k=4, num_requests=1, prefill_tokens=30)
    trace = replace(trace.phase(0), tokens=replace(trace.phase(0).tokens, step=np.arange(30)))
    seen = placement_study("prefill", trace, certificate_s=0)
    assert (seen.steps, seen.split, seen.has_intervals) == ("token", "time", False)
    text = placement_tables([seen])
    assert "each token its own step, one request, cut in time" in text
    assert "no interval" in text
    assert "SYNTHETIC" in text


def test_verdicts_follow_the_intervals(small):
    for line in placement_tables([small]).splitlines():
        cells = re.findall(r"([+-]\d\.\d+) \(([+-]\d\.\d+) to ([+-]\d\.\d+)\) \| (\w+)", line)
        for _, low, high, verdict in cells:
            expected = "ours" if float(high) < 0 else "eplb" if float(low) > 0 else "tie"
            assert verdict == expected or np.isclose(0, [float(low), float(high)], atol=6e-4).any()


def test_page_and_command(small, tmp_path, capsys):
    page = tmp_path / "placement.md"
    page.write_text(f"# Ours\n\nprose\n\n{BEGIN}\nold\n{END}\nafter\n")
    update_placement_page([small], page)
    text = page.read_text()
    assert text.startswith("# Ours\n\nprose\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| anneal |" in text
    trace = tmp_path / "trace"
    with TraceWriter(trace, small.trace.header) as writer:
        writer.append(small.trace.experts, small.trace.gate_weights, small.trace.tokens)
    arguments = ["findings", str(trace), "--placement", "--nodes", "2", "4", "--certificate", "1", "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["nodes"] for each in document["studies"]] == [2, 4]
    assert main(["findings", str(trace), "--nodes", "2"]) == 2
    assert "belong to --placement" in capsys.readouterr().err
