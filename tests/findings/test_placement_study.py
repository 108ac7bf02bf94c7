"""The placement study: scores are the plans' own, every planner ran, the page is written between its markers."""

import dataclasses
import json
from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pytest

from moelab.cli import main
from moelab.domain.machine import Machine
from moelab.findings.equal_bytes import MOST_VISITS, equal_bytes
from moelab.findings.fast_and_nodes import OFFERS
from moelab.findings.full_budget import TARGETS
from moelab.findings.placement_page import BEGIN, END, placement_tables, update_placement_page, within_target
from moelab.findings.placement_study import EXTRA_MEMORY, placement_study
from moelab.planner import NODE_PLANNERS, anneal, best, eplb, sequential
from moelab.store import TraceWriter
from tests.seeded_traces import seeded_trace


@pytest.fixture(scope="module")
def small():
    trace = seeded_trace(2, num_layers=2, num_experts=16, top_k=4, num_requests=24, decode_tokens=5)
    return placement_study("small", trace, certificate_s=5, certificate_steps=24, seeds=(0, 1, 2))


def test_every_planner_ran_and_scores_are_the_plans_own(small):
    assert {name for name, _ in small.placed} == set(NODE_PLANNERS) - {"best", "joint", "interleave", "fastest"}
    plan = anneal(small.trace, nodes=2, extra_memory=0.25, held_out=0.5, phase="decode")
    one = small.placed["anneal", 0.25]
    assert one.score.mean == plan.prediction["heldout_mean_max"]
    assert one.score.interval() == plan.prediction["heldout_mean_max_interval"]
    assert one.in_sample_ratio == plan.prediction["train_ratio_to_ideal"]
    assert small.has_intervals
    assert set(small.certificates) == set(EXTRA_MEMORY)
    assert all(proof.plan >= proof.annealed - 1e-9 for proof in small.certificates.values())
    assert {proof.num_steps for proof in small.certificates.values()} == {24}


def test_prefill_is_taken_token_by_token_and_says_so():
    trace = seeded_trace(2, num_layers=2, num_experts=16, top_k=4, num_requests=1, prefill_tokens=30)
    trace = replace(trace.phase(0), tokens=replace(trace.phase(0).tokens, step=np.arange(30)))
    seen = placement_study("prefill", trace, certificate_s=0)
    assert (seen.steps, seen.split, seen.has_intervals) == ("token", "time", False)
    text = placement_tables([seen])
    assert "each token its own step, one request, cut in time" in text
    assert "no interval" in text
    assert "SYNTHETIC" in text


def test_no_node_holds_more_than_eplb_s(small):
    """In every split; what ours chose and how both were scored is what the planners say by themselves."""
    assert [(one.seed, one.offered) for one in small.equal] == [(s, share) for s in (0, 1, 2) for share in EXTRA_MEMORY]
    for one in small.equal:
        assert (one.our_bytes <= one.eplb_bytes).all()
        if (one.seed, one.offered) not in {(1, 0.1), (2, 0.25)}:
            continue
        options = {"nodes": 2, "held_out": 0.5, "seed": one.seed, "phase": "decode"}
        theirs = eplb(small.trace, extra_memory=one.offered, **options)
        assert one.eplb.mean == theirs.prediction["heldout_mean_max"]
        assert one.eplb_bytes.tolist() == theirs.prediction["bytes_per_node"]
        assert one.held <= one.offered + 1e-9
        ours = best(small.trace, node_bytes=one.eplb_bytes, most_visits=MOST_VISITS, **options)
        assert one.ours.mean == ours.prediction["heldout_mean_max"]
        assert one.chosen == ours.planner["chosen"]
        value, low, high = one.difference
        assert value == pytest.approx(one.ours.mean - one.eplb.mean)
        assert one.verdict == ("ours ahead" if high < 0 else "eplb ahead" if low > 0 else "tie")


def test_eplb_needs_experts_that_divide_over_the_nodes():
    trace = seeded_trace(2, num_layers=1, num_experts=16, num_requests=4)
    assert equal_bytes(trace, {"nodes": 3}, offers=[0.0], seeds=[0]) == []


def test_page_says_median_range_and_verdict_of_all_splits(small):
    rows = _rows_of("## Ours beside EPLB at equal bytes", [small])
    for share, line in zip(EXTRA_MEMORY, rows, strict=True):
        of_share = [one for one in small.equal if one.offered == share]
        ratios = sorted(one.ours.ratio for one in of_share)
        assert f"{ratios[1]:.3f} ({ratios[0]:.3f} to {ratios[2]:.3f})" in line
        for one in of_share:
            assert "{:+.3f} ({:+.3f} to {:+.3f})".format(*one.difference) in line
            assert one.verdict in line


def test_joint_beside_sequential_is_what_the_planners_say(small):
    """Every split and amount of memory; the difference is of pairs, the page prints it with its verdict."""
    assert [(one.seed, one.offered) for one in small.joint] == [(s, share) for s in (0, 1, 2) for share in OFFERS]
    for one in small.joint:
        assert one.slots == 3
        assert one.hit_rates["sequential"] == one.hit_rates["hottest first"] > 0
        low, high = one.difference[1:]
        assert one.verdict == ("joint ahead" if high < 0 else "sequential ahead" if low > 0 else "tie")
        if (one.seed, one.offered) not in {(1, 0.1), (2, 0.0)}:
            continue
        options = {
            "nodes": 2, "held_out": 0.5, "seed": one.seed, "phase": "decode", "extra_memory": one.offered,
            "fast_slots": 3,
        }  # fmt: skip
        says = {name: planner(small.trace, **options).prediction for name, planner in (
            ("joint", NODE_PLANNERS["joint"]), ("sequential", sequential),
        )}  # fmt: skip
        for name, prediction in says.items():
            assert one.scores[name].mean == prediction["heldout_mean_max"]
            assert one.hit_rates[name] == prediction["hit_rate_per_request"]
        assert one.scores["hottest first"].mean == says["joint"]["hottest_first_mean_max"]
        assert one.scores["sequential"].mean == says["joint"]["sequential_mean_max"]
        assert one.difference[0] == pytest.approx(
            says["joint"]["heldout_mean_max"] - says["sequential"]["heldout_mean_max"]
        )  # fmt: skip
    rows = _rows_of("## Fast tier and nodes together", [small])
    assert len(rows) == len(OFFERS)
    for offer, line in zip(OFFERS, rows, strict=True):
        for one in small.joint:
            if one.offered == offer:
                assert "{:+.3f} ({:+.3f} to {:+.3f})".format(*one.difference) in line
                assert one.verdict in line


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((-0.2, -0.1), "joint ahead"), ((0.1, 0.2), "sequential ahead"), ((-0.1, 0.1), "tie"),
     ((float("nan"),) * 2, "no interval")],
)  # fmt: skip
def test_verdicts_beside_sequential(small, interval, verdict):
    assert dataclasses.replace(small.joint[0], difference=(0.0, *interval)).verdict == verdict


def test_every_certificate_has_its_verdict(small):
    assert [within_target(*each) for each in ((0.02, False), (0.0201, False), (0.0201, True), (0.0, True))] == [
        "yes", "not shown", "no", "yes"
    ]  # fmt: skip
    found = small.certificates[EXTRA_MEMORY[0]]
    loose = dataclasses.replace(found, gap=0.0508, is_optimal=False)
    study = dataclasses.replace(small, certificates={EXTRA_MEMORY[0]: found, EXTRA_MEMORY[1]: loose})
    table = placement_tables([study]).split("## How far from the optimum")[1].split("\n## ")[0]
    head, *rows = (line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "---" not in line)
    verdicts = [row[head.index("within 2%")] for row in rows]
    assert verdicts == [within_target(found.gap, found.is_optimal), "not shown"]
    assert "5.08%" in rows[1]


def test_the_page_names_day_and_machine_of_what_it_shows(small):
    here = Machine.detect()
    assert small.made.endswith(f" on {here.cpu or here.name}, {here.num_cores} cores")
    assert date.fromisoformat(small.made[:10]) <= datetime.now(UTC).date()
    other = dataclasses.replace(small, made="2020-01-02 on another")
    first = placement_tables([small, small, other]).splitlines()[0]
    assert first == f"Planned, proven and scored {small.made}; 2020-01-02 on another."


def test_page_and_command(small, tmp_path, capsys):
    page = tmp_path / "placement.md"
    page.write_text(f"# Ours\n\nprose\n\n{BEGIN}\nold\n{END}\nafter\n")
    update_placement_page([small], page)
    text = page.read_text()
    assert text.startswith("# Ours\n\nprose\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    assert "| anneal |" in text
    trace = tmp_path / "trace"
    with TraceWriter(trace, small.trace.header) as writer:
        writer.append(small.trace.experts, small.trace.gate_weights, small.trace.tokens)
    arguments = ["findings", str(trace), "--placement", "--nodes", "2", "4", "--seeds", "0", "--certificate", "1",
                 "--json"]  # fmt: skip
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["nodes"] for each in document["studies"]] == [2, 4]
    assert main(["findings", str(trace), "--nodes", "2"]) == 2
    assert "belong to --placement" in capsys.readouterr().err


def test_full_budget_is_what_best_gives_with_all_of_it(small):
    """Beside EPLB's plan of the same offer and split, both scored where neither has looked."""
    wanted = [(seed, share) for seed in (0, 1, 2) for share in EXTRA_MEMORY if share]
    assert [(one.seed, one.offered) for one in small.full] == wanted
    for one in small.full:
        assert one.held <= one.offered + 1e-9
        if (one.seed, one.offered) not in {(0, 0.25), (2, 0.1)}:
            continue
        options = {"nodes": 2, "held_out": 0.5, "seed": one.seed, "phase": "decode", "extra_memory": one.offered}
        ours, theirs = best(small.trace, **options), eplb(small.trace, **options)
        assert one.ours.mean == ours.prediction["heldout_mean_max"]
        assert one.in_sample == ours.prediction["train_ratio_to_ideal"]
        assert one.chosen == ours.planner["chosen"]
        assert one.eplb.mean == theirs.prediction["heldout_mean_max"]
        assert one.held == pytest.approx(sum(ours.prediction["bytes_per_node"]) / _all_bytes(small.trace) - 1)
        assert one.eplb_held == pytest.approx(sum(theirs.prediction["bytes_per_node"]) / _all_bytes(small.trace) - 1)
        value, low, high = one.difference
        assert value == pytest.approx(ours.prediction["heldout_mean_max"] - theirs.prediction["heldout_mean_max"])
        assert one.verdict == ("ours ahead" if high < 0 else "eplb ahead" if low > 0 else "tie")


def _all_bytes(trace):
    header = trace.header
    return header.num_experts * sum(header.expert_bytes)


def test_page_says_in_how_many_splits_a_target_is_met(small):
    ratios = sorted(one.ours.ratio for one in small.full if one.offered == 0.1)
    for target, said in (
        (ratios[2], "met |"),
        ((ratios[0] + ratios[1]) / 2, "met in 1 of 3 |"),
        (1.0, "met in 0 of 3 |"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TARGETS, ("small", 0.1), target)
            rows = _rows_of("## Ours beside EPLB with the same memory", [small])
            elsewhere = _rows_of("## Ours beside EPLB with the same memory", [dataclasses.replace(small, num_nodes=4)])
        assert rows[0].endswith(f"{target:.3f}: {said}")
        assert elsewhere[0].endswith("|  |")
        assert f"{ratios[1]:.3f} ({ratios[0]:.3f} to {ratios[2]:.3f})" in rows[0]
        for one in small.full:
            line = rows[0 if one.offered == 0.1 else 1]
            assert "{:+.3f} ({:+.3f} to {:+.3f})".format(*one.difference) in line
            assert one.verdict in line


def _rows_of(heading, studies):
    part = placement_tables(studies).split(heading)[1].split("\n#")[0]
    return [line for line in part.splitlines() if line.startswith("| ")][2:]
