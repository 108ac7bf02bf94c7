"""The whole analysis: what stands in it, what it says it cannot give, the command and its page."""

import json

import numpy as np
import pytest

import moelab
from moelab.analysis import miss_ratio_curve
from moelab.analysis.reuse_share import FRACTIONS, reuse_share
from moelab.cli import main
from moelab.domain.counts import CountsTable
from tests.seeded_traces import seeded_trace
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

PARTS = ("popularity", "reuse", "coactivation", "stability")


def counts_of(trace):
    header = trace.header
    return CountsTable(header.model, trace.num_tokens, header.top_k, header.model_layer_of_layer, trace.loads())


def test_every_part_with_intervals():
    result = moelab.analyse(seeded_trace(1, num_requests=30, decode_tokens=40), progress=False)
    frame = result.to_frame()
    assert set(frame.part) == set(PARTS)
    assert set(frame.routing) == {"synthetic"}
    assert any("SYNTHETIC" in note for note in result.notes)
    # Means over requests have their interval; two figures of halves and neighbours have a baseline only.
    without = set(frame[frame.low.isna()].metric)
    assert without == {"pairs_found_lift", "adjacent_top_20%_pair_share"}
    known = frame[frame.low.notna()]
    assert (known.low <= known.high).all()
    document = json.loads(json.dumps(result.to_dict(), default=float))
    assert document["requests"] == 30
    assert document["routing"] == "synthetic"
    for part in PARTS:
        assert document[part]
    html = result._repr_html_()
    assert html.count("<table") >= 6
    assert "synthetic" in html
    assert "synthetic" in repr(result)


def test_one_request_says_that_it_has_no_interval():
    result = moelab.analyse(seeded_trace(1, num_requests=1, decode_tokens=40), progress=False)
    assert any("one request: no interval" in note for note in result.notes)
    frame = result.to_frame()
    without_halves = frame[~frame.group.isin(["halves"])]
    assert without_halves.low.isna().all()
    assert result.head()["interval"] is None


def test_counts_give_what_counts_can():
    trace = seeded_trace(1, num_requests=12)
    table, whole = moelab.analyse(counts_of(trace)), moelab.analyse(trace, progress=False)
    assert table.reuse is table.lags is table.coactivation is table.stability is None
    assert any("counts only" in note for note in table.notes)
    assert np.array_equal(table.popularity.values[0], whole.popularity.values[0])
    assert np.isnan(table.popularity.low).all()
    assert set(table.to_frame().part) == {"popularity"}
    with pytest.raises(ValueError, match="these counts are of phase None"):
        moelab.analyse(counts_of(trace), phase="decode")


def test_phase_is_taken_and_named():
    trace = seeded_trace(1, num_requests=6)
    result = moelab.analyse(trace, phase="prefill", progress=False)
    assert result.num_tokens == (trace.tokens.phase == 0).sum()
    assert any("prefill only" in note for note in result.notes)
    with pytest.raises(ValueError, match="phase is 'warm'"):
        moelab.analyse(trace, phase="warm", progress=False)
    with pytest.raises(ValueError, match="no prefill tokens"):
        moelab.analyse(seeded_trace(1, prefill_tokens=0), phase="prefill", progress=False)


def test_reuse_shares_are_the_hit_rates_of_the_curve():
    trace = seeded_trace(3, num_requests=9, num_experts=40, top_k=2)
    result, curve = reuse_share(trace), miss_ratio_curve(trace).miss_ratio_per_request()
    assert result.slots.tolist() == [max(1, round(f * 40)) for f in FRACTIONS]
    np.testing.assert_allclose(result.share, 1 - curve[result.slots])
    assert (result.low < result.share).all()
    mixed = reuse_share(seeded_trace(3, num_requests=9, batch=3))
    assert np.isnan(mixed.low).all(), "a set of several requests belongs to none of them"


def test_opened_trace_is_read():
    stored = moelab.open_trace(moelab.shipped("nano/capture"))
    opened = moelab.analyse(stored, phase="prefill", num_samples=10, progress=False).to_frame()
    assert opened.equals(moelab.analyse(stored.load(), phase="prefill", num_samples=10, progress=False).to_frame())


def test_same_seed_same_result():
    trace = seeded_trace(1, num_requests=10)
    a, b, c = (moelab.analyse(trace, seed=s, progress=False).to_frame() for s in (1, 1, 2))
    assert a.equals(b)
    assert not a.equals(c)


def test_command_on_the_shipped_capture(capsys, tmp_path):
    page = tmp_path / "analysis.html"
    assert main(["analyse", "--phase", "decode", "--samples", "50", "--json", "--report", str(page)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["routing"] == "recorded"
    assert document["requests"] >= 100
    rows = {(row["domain"], row["metric"]): row for row in document["popularity"]}
    pooled = rows["all", "share_of_top_20%"]
    assert pooled["low"] < pooled["value"] < pooled["of_one_request"]
    assert document["stability"]["split"] == "request"
    text = page.read_text()
    assert text.count("plotly-graph-div") == 6
    assert "SYNTHETIC" not in text.split("</style>")[1].split("<script")[0]


def test_command_prints_tables_for_people(capsys):
    assert main(["analyse", str(moelab.shipped("nano/capture_batch8")), "--samples", "20"]) == 0
    said = capsys.readouterr().out
    for part in PARTS:
        assert f"{part} (recorded)" in said
    assert "prefill and decode together" in said


def test_command_refuses_a_report_into_nowhere(capsys, tmp_path):
    assert main(["analyse", "--report", str(tmp_path / "no" / "page.html")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


@needs_shared_traces
def test_real_traces_say_what_their_notes_say(capsys):
    """The figures of each folder's NOTE.md, by the command."""
    assert main(["analyse", str(SHARED_TRACES / "mbolt_qwen3_30b_counts"), "--json"]) == 0
    counts = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["popularity"]}
    assert counts["share_of_top_10%"] == pytest.approx(0.361, abs=5e-4)
    assert counts["share_of_top_25%"] == pytest.approx(0.650, abs=5e-4)
    assert counts["normalised_entropy"] * 7 == pytest.approx(6.23, abs=5e-3)
    assert main(["analyse", str(SHARED_TRACES / "gpt_oss_20b_fingerprint"), "--json", "--samples", "50"]) == 0
    gpt = json.loads(capsys.readouterr().out)
    assert gpt["reuse"]["lags"][0]["overlap"] == pytest.approx(0.440, abs=5e-4)
    assert gpt["popularity"][0]["value"] == pytest.approx(0.221, abs=5e-4)
    assert main(["analyse", str(SHARED_TRACES / "deepseek_v2_lite_esft"), "--json", "--samples", "50"]) == 0
    esft = json.loads(capsys.readouterr().out)
    rows = {(row["domain"], row["metric"]): row["value"] for row in esft["popularity"]}
    assert rows["translation", "share_of_top_25%"] == pytest.approx(0.652, abs=5e-4)
    assert rows["all", "share_of_top_10%"] == pytest.approx(0.200, abs=5e-4)
    assert all(row["drift"] for row in esft["stability"]["groups"] if row["kind"] == "domain")
