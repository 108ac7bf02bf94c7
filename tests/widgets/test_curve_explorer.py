"""CurveExplorer without a browser: rows of the plain sweep, its picture, the map, states, the saved notebook."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter

import moelab
from moelab import plots
from moelab.analysis.expert_miss_ratio import expert_miss_ratio
from moelab.exploration import fast_tier_size
from moelab.widgets import CurveExplorer
from moelab.widgets.chart import chart_of
from tests.seeded_traces import seeded_trace

POLICIES, SIZES = ["lru", "admit_ema_lfu"], [4, 6, 9]


@pytest.fixture(scope="module")
def trace():
    return seeded_trace(3, num_requests=6, decode_tokens=40)


@pytest.fixture
def view(trace):
    view = CurveExplorer(trace, POLICIES, SIZES)
    assert view.wait(300)
    assert view.status == "ready", view.message
    return view


def test_numbers_are_those_of_the_plain_calls(view, trace):
    plain = moelab.sweep(trace, POLICIES, SIZES, phase="decode", oracles=True, progress=False)
    assert view.sweep.rows == plain.rows
    assert "SYNTHETIC" in view.message
    frame = plain.to_frame()
    for of in ("misses", "reads"):
        view.of = of
        twin = chart_of(plots.policy_curves(plain, of))
        assert view.chart == {**twin, "x": {**twin["x"], "per_slot": 1.0}}
    ratios = expert_miss_ratio(trace, phase="decode")
    for slots in SIZES:
        view.slots = slots
        np.testing.assert_array_equal(view.values, ratios.at(slots).astype(np.float32))
        at = frame[frame.slots == slots]
        assert [row["reads"] for row in view.rows] == at.reads_per_layer_step.tolist()
        assert [row["miss_ratio"] for row in view.rows] == (1 - at.hit_rate_per_request).tolist()
    assert [row["policy"] for row in view.rows if row["is_oracle"]] == ["min_bypass", "min_demand"]


def test_experts_chosen_on_the_map_have_a_curve(view, trace):
    assert not any("chosen on the map" in one["name"] for one in view.chart["series"])
    mask = np.zeros((3, 12), bool)
    mask[1, :5] = True
    view.choose(mask)
    own = view.chart["series"][-1]
    assert own["name"] == "LRU, the 5 experts chosen on the map, about", "a prompt's set is larger than 4 slots"
    curve = expert_miss_ratio(trace, phase="decode").curve(mask)
    assert own["x"] == list(range(4, 10)), "within the sizes of the sweep"
    assert own["y"] == curve[own["x"]].tolist()
    view.slots = 4
    np.testing.assert_array_equal(view.chosen, mask), "another size keeps the choice"
    view.choose(np.zeros((3, 12), bool))
    assert "chosen on the map" not in view.picture


@pytest.mark.parametrize("axis", ["slots", "GB"])
def test_sizes_in_slots_of_all_layers_and_in_gb(trace, axis):
    sized = replace(trace, header=trace.header.model_copy(update={"expert_bytes": (3_000_000, 5_000_000, 4_000_000)}))
    view = CurveExplorer(sized, sweep=moelab.sweep(sized, POLICIES, SIZES, progress=False))
    assert view.axes == ["slots per layer", "slots", "GB"]
    mask = np.zeros((3, 12), bool)
    mask[1, :5] = True
    view.choose(mask)
    before = view.chart
    view.axis = axis
    factor = 3 if axis == "slots" else (3 + 5 + 4) / 1000
    for slots in (1, 9):
        size = fast_tier_size(sized.header, slots)
        assert (size.slots if axis == "slots" else size.num_bytes / 1e9) == pytest.approx(slots * factor)
    assert view.chart["x"]["low"] == pytest.approx(before["x"]["low"] * factor)
    assert view.chart["x"]["high"] == pytest.approx(before["x"]["high"] * factor)
    for one, other in zip(view.chart["series"], before["series"], strict=True):
        assert one["x"] == pytest.approx([x * factor for x in other["x"]])
        assert one["y"] == other["y"]
    cliffs = [[line["x"] for line in chart["lines"] if "x" in line] for chart in (view.chart, before)]
    assert cliffs[0] == pytest.approx([x * factor for x in cliffs[1]])
    assert len(cliffs[0]) == 1
    assert axis.split()[0] in view.chart["x"]["label"]
    assert view.chart["x"]["label"] in view.picture


def test_gb_are_not_offered_where_bytes_are_not_known(trace):
    header = trace.header.model_copy(update={"expert_bytes": (0,) * 3})
    nameless = replace(trace, header=header)
    view = CurveExplorer(nameless, sweep=moelab.sweep(nameless, POLICIES, SIZES, progress=False))
    assert view.axes == ["slots per layer", "slots"]
    view.axis = "GB"
    assert view.status == "error"
    assert "does not say the bytes of an expert" in view.message


def test_layers_chosen_on_the_map_have_a_curve(view, trace):
    mask = np.zeros((3, 12), bool)
    mask[1, :5] = mask[2, 7] = True
    view.choose(mask)
    layers, own = view.chart["series"][-2:]
    assert layers["name"] == "LRU, the 2 layers chosen on the map, about"
    assert own["name"].startswith("LRU, the 6 experts chosen")
    whole = np.zeros((3, 12), bool)
    whole[1:] = True
    curve = expert_miss_ratio(trace, phase="decode").curve(whole)
    assert layers["y"] == curve[layers["x"]].tolist()
    assert layers["dash"] != own["dash"]
    mask[0, 0] = True
    view.choose(mask)
    assert not any("layers chosen" in one["name"] for one in view.chart["series"]), (
        "all layers are all policies' curves"
    )
    view.choose(np.arange(3)[:, None] == np.full((3, 12), 2))
    assert view.chart["series"][-2]["name"].startswith(f"LRU, layer {trace.header.model_layer_of_layer[2]}")


def test_policies_can_be_left_out(view):
    colours = {one["name"]: one["colour"] for one in view.chart["series"]}
    view.hidden = ["lru"]
    assert {one["name"]: one["colour"] for one in view.chart["series"]}.items() < colours.items(), "colours stay"
    assert not any(one["name"].startswith("lru") for one in view.chart["series"])
    view.hidden = list(view.names)
    assert (view.chart, view.picture) == ({}, "")


def test_states(trace):
    assert "give one" in CurveExplorer().message
    assert CurveExplorer(trace.take(slice(0, 0))).status == "empty"
    wrong = CurveExplorer(trace, ["no_such"], SIZES)
    wrong.wait(60)
    assert wrong.status == "error"
    assert "policy is no_such" in wrong.message
    whole = moelab.sweep(trace, ["lru"], [9], scope="global", progress=False)
    assert "expected slots per layer" in CurveExplorer(trace, sweep=whole).message
    given = moelab.sweep(trace, ["lru"], SIZES, progress=False)
    assert CurveExplorer(trace, sweep=given, phase="prefill").sweep.rows == given.rows


@pytest.mark.parametrize("num_experts", [1, 2, 4, 8, 12, 16, 60])
def test_sizes_at_first_of_any_number_of_experts(num_experts):
    """Shares of few experts fall on the same slots."""
    top_k = min(2, num_experts)
    small = seeded_trace(num_experts=num_experts, top_k=top_k, num_layers=2, num_requests=2, decode_tokens=6)
    view = CurveExplorer(small, ["lru"])
    assert view.wait(300)
    assert view.status == "ready", view.message
    assert view.sizes == sorted({max(1, round(share * num_experts)) for share in (0.05, 0.1, 0.2, 0.3, 0.5)})
    assert len(view.rows) == 2
    assert "<svg" in view.picture


def test_a_sweep_of_another_trace_is_refused(trace):
    options = {"num_requests": 6, "decode_tokens": 40}
    others = [seeded_trace(4, **options), seeded_trace(3, **options, num_layers=2), seeded_trace(3, decode_tokens=40)]
    for other in others:
        with pytest.raises(ValueError, match="expected a sweep of this very trace"):
            CurveExplorer(trace, sweep=moelab.sweep(other, ["lru"], SIZES, progress=False))
    before = moelab.sweep(trace, ["lru"], SIZES, progress=False)
    for row in before.rows:
        assert row.pop("trace") == trace.fingerprint()
    assert CurveExplorer(trace, sweep=before).status == "ready", "rows of before they named their trace"
    for wrong in ("folder", np.zeros((3, 2))):
        with pytest.raises(TypeError, match="expected a Trace or"):
            CurveExplorer(wrong)


def test_what_is_not_drawn_is_said(view, trace):
    view.slots = 5
    assert view.rows == []
    assert "No policy was simulated at 5 slots, expected one of 4, 6, 9." in view.message
    view.slots = 6
    assert "5 slots" not in view.message
    view.hidden = list(view.names)
    assert "tick one" in view.message
    view.hidden = []
    assert view.message == "SYNTHETIC routing of seeded."
    for policies, sizes, words in ((["lru"], [0], "capacity is 0"), ([], [4], "no policy"), (["lru"], [4, 4], "twice")):
        refused = CurveExplorer(trace, policies, sizes)
        assert refused.status == "error", "at once, without a sweep"
        assert words in refused.message
    seldom = trace.experts.copy()
    seldom[seldom == 11] = moelab.NO_EXPERT
    rare = CurveExplorer(moelab.Trace(trace.header, seldom, trace.gate_weights, trace.tokens), ["lru"], SIZES)
    assert rare.wait(300)
    mask = np.zeros((3, 12), bool)
    mask[:, 11] = True
    rare.choose(mask)
    assert "never used" in rare.message
    assert "chosen on the map" not in rare.picture


def test_a_closed_view_stops(trace):
    view = CurveExplorer(trace, ["lru", "lfu", "arc", "sieve"], list(range(3, 12)))
    view.close()
    assert view.wait(120)
    assert view.sweep is None


def test_cancel_ends_the_sweep(trace):
    view = CurveExplorer(trace, sorted({"lru", "lfu", "arc", "sieve", "s3_fifo", "lfru"}), list(range(3, 12)))
    view._on_message(None, {"do": "cancel"}, None)
    started = time.monotonic()
    assert view.wait(120)
    assert (view.status, view.sweep) == ("empty", None)
    assert "Press Simulate" in view.message
    assert time.monotonic() - started < 60
    view._on_message(None, {"do": "start"}, None)
    assert view.wait(300)
    assert view.status == "ready"


def test_a_saved_notebook_shows_chart_map_and_table(view):
    data, metadata = view._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("view", outputs=[output])])
    )
    assert page.count("<svg") > 3
    assert "data:image/png;base64" in page
    assert re.search(r"admit_ema_lfu.*?% missed", page, re.DOTALL)
