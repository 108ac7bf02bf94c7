"""The study of a trace: counts equal simulations, static is held out, ties and intervals, the page and its command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import moelab
from moelab.cli import main
from moelab.cli.findings import _names
from moelab.findings import study, update_page
from moelab.findings.compare import Bootstrap
from moelab.findings.counted import COLUMNS, Counted, cluster_of_step
from moelab.findings.held_out import OTHER_DOMAINS, STATIC, WATER_FILLED, HeldOut
from moelab.findings.page import BEGIN, END, tables
from moelab.planner import frequency
from moelab.policies import POLICIES
from moelab.policies.requests import Requests
from tests.seeded_traces import plan_for, seeded_trace


def one_of(values, **more):
    """Counted of reads = misses over ten layer-steps each."""
    table = np.zeros((len(values), len(COLUMNS)), np.int64)
    table[:, COLUMNS.index("misses")] = values
    table[:, COLUMNS.index("layer_steps")] = 10
    return Counted(**{"policy": "x", "slots": 1, "values": table} | more)


@pytest.fixture(scope="module")
def small():
    trace = seeded_trace(2, num_layers=2, num_experts=20, top_k=2, num_requests=12, prefill_tokens=3, decode_tokens=8)
    return study("small", trace, num_samples=500, progress=False)


def test_counts_are_those_of_simulations_and_every_policy_ran(small):
    expected = {name for name in POLICIES if name not in ("static", "prefetch_stale_gate")}
    expected |= {STATIC, WATER_FILLED, OTHER_DOMAINS}
    assert {one.policy for one in small.scored[0.2]} == expected
    for name in ("lru", "prefetch_markov", "min_demand"):
        result = moelab.simulate(
            small.trace, plan_for(small.trace, name, slots_per_layer=4), phase="decode", progress=False
        )
        one = small.find(0.2, name)
        assert one.slots == 4
        assert one.value("reads") == pytest.approx(result.reads_per_layer_step)
        assert one.value("hit_rate") == pytest.approx(result.hit_rate_per_request)
        assert len(one.values) == 12
    result = moelab.simulate(small.trace, plan_for(small.trace, "lru", slots=8), phase="decode", progress=False)
    assert small.pool["lru", 8].value("hit_rate") == pytest.approx(result.hit_rate_per_request)
    first = small.on_first[0.2]
    assert all(first["min_cost"] <= reads + 1e-9 for name, reads in first.items() if not name.startswith("prefetch"))


@pytest.mark.parametrize(("name", "capacity"), [(STATIC, "slots_per_layer"), (WATER_FILLED, "slots")])
def test_static_is_planned_on_other_requests_and_equals_its_simulation(name, capacity):
    """Fold by fold: a frequency plan of the decode tokens of the other folds, simulated on the fold alone."""
    trace = seeded_trace(7, num_layers=2, num_requests=9, decode_tokens=6)
    requests, cluster = Requests.of_trace(trace), cluster_of_step(trace)
    scored = requests.steps_of_phase("decode")
    held_out = HeldOut(trace, requests, cluster, scored, scored, seed=3)
    got = next(one for one in held_out.score(3) if one.policy == name)
    assert sorted(np.bincount(held_out.fold).tolist()) == [2, 2, 2, 3]
    for request in range(9):
        others = np.flatnonzero(held_out.fold != held_out.fold[request])
        train = trace.requests(others).phase(moelab.Phase.DECODE)
        plan = frequency(train, **{capacity: 3 if name == STATIC else 6}, held_out=0.0)
        result = moelab.simulate(trace.requests([request]), plan, phase="decode", progress=False)
        row = dict(zip(COLUMNS, got.values[request].tolist(), strict=True))
        assert (row["hits"], row["misses"]) == (result.hits, result.misses)
        assert row["routings"] == result.routings
        assert row["layer_steps"] == result.num_layer_steps


def test_one_request_is_cut_in_time():
    """Experts 0 and 1 in the first half, 2 and 3 in the second: what was counted never hits."""
    trace = seeded_trace(1, num_layers=1, num_experts=8, top_k=2, num_requests=1, prefill_tokens=0, decode_tokens=40)
    ids = np.where(np.arange(40)[:, None, None] < 20, [[[0, 1]]], [[[2, 3]]]).astype(np.uint16)
    object.__setattr__(trace, "experts", np.ascontiguousarray(ids))
    one = study("one", trace, num_samples=200, progress=False)
    assert one.num_clusters == 1
    assert one.num_tokens == 20
    assert one.find(0.3, STATIC).value("hit_rate") == 0
    assert one.find(0.3, "lru").value("hit_rate") == pytest.approx(19 / 20)
    text = tables([one])
    assert "no interval" in text
    assert not re.search(r"\d to [+-]?\d", text)


def test_requests_decoded_together_are_one_cluster():
    trace = seeded_trace(3, num_requests=6, batch=3)
    cluster = cluster_of_step(trace)
    step_of_request = [set(trace.tokens.step[trace.tokens.request == r].tolist()) for r in range(6)]
    assert len(set(cluster.tolist())) == 2
    for request, steps in enumerate(step_of_request):
        assert set(cluster[sorted(steps)].tolist()) == {request // 3}


def test_intervals_and_ties():
    rng = np.random.default_rng(0)
    base = rng.integers(20, 60, 40)
    best, close, far = one_of(base), one_of(base + rng.integers(-4, 6, 40)), one_of(base + 10)
    bootstrap = Bootstrap(40, 2000, 0)
    assert bootstrap.ties([best, close, far], best) == [close]
    interval = bootstrap.interval(best, "reads")
    spread = np.std(base, ddof=1) / 10 / np.sqrt(40)
    assert interval.value == pytest.approx(base.mean() / 10)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * spread, rel=0.15)
    paired = bootstrap.difference(far, best, "reads")
    assert [paired.value, paired.low, paired.high] == pytest.approx([1.0] * 3), "paired: the same draws for both"
    wider = bootstrap.difference(close, best, "reads", 20)
    plain = bootstrap.difference(close, best, "reads")
    assert wider.high - wider.low > plain.high - plain.low
    assert not Bootstrap(1, 2000, 0).interval(one_of([3]), "reads").known
    assert Bootstrap(1, 2000, 0).ties([one_of([3]), one_of([3])], one_of([3])) == []


def test_page_keeps_the_prose_and_names_what_is_synthetic(small, tmp_path):
    page = tmp_path / "findings.md"
    page.write_text(f"# Ours\n\nprose\n{BEGIN}\nold table\n{END}\nmore prose\n")
    update_page([small], page)
    text = page.read_text()
    assert text.startswith("# Ours\n\nprose\n")
    assert text.endswith("more prose\n")
    assert "old table" not in text
    assert text.count("SYNTHETIC") >= 3
    assert f"{small.online(0.1)[0].value('reads'):.2f}" in text
    update_page([small], page)
    assert page.read_text() == text
    (tmp_path / "other.md").write_text("nothing")
    with pytest.raises(ValueError, match="lacks the lines"):
        update_page([small], tmp_path / "other.md")


def test_command_refuses_before_it_works(tmp_path, capsys):
    assert main(["findings", "--out", str(tmp_path / "none" / "x.md")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
    assert main(["findings", "--samples", "5"]) == 2
    assert "expected at least 100" in capsys.readouterr().err
    assert main(["findings", str(tmp_path / "nowhere")]) == 2


def test_command_as_json(tmp_path, capsys):
    from moelab.store import TraceWriter

    trace = seeded_trace(2, num_requests=3, decode_tokens=5)
    with TraceWriter(tmp_path / "t", trace.header) as writer:
        writer.append(trace.experts, trace.gate_weights, trace.tokens)
    assert main(["findings", str(tmp_path / "t"), "--samples", "100", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["traces"][0]
    assert document["synthetic"] is True
    assert {row["policy"] for row in document["rows"]} >= {"lru", STATIC, "min_bypass"}


def test_page_has_what_the_simulator_says_today():
    """Rows of docs/findings.md: written again after a change of policies or simulator, as its command says."""
    capture = moelab.open_trace(moelab.shipped("nano/capture")).load()
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
    rows = page.partition("## Every policy: nano/capture\n")[2].partition("\n## ")[0]
    named = {line.split("|")[1].strip() for line in rows.splitlines() if line.startswith("| ")}
    policies = sorted(named & set(POLICIES) - {"static"})
    assert len(policies) > 20
    swept = moelab.sweep(capture, policies, [0.1], phase="decode", progress=False)
    for row in swept.table():
        line = next(line for line in rows.splitlines() if line.startswith(f"| {row['policy']} |"))
        assert line.split("|")[3].split()[0] == f"{row['reads_per_layer_step']:.2f}"


def test_names_of_traces():
    assert _names(["a/gpt_oss", "b/deepseek"]) == ["gpt_oss", "deepseek"]
    assert _names(["a/gpt_oss", "b/gpt_oss", "b/qwen"]) == ["a/gpt_oss", "b/gpt_oss", "qwen"]
    with pytest.raises(ValueError, match=r"got a/\.\./a/x more than once, expected each trace once"):
        _names(["a/../a/x", "a/x"])
