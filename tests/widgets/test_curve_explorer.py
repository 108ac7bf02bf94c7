"""CurveExplorer without a browser: rows of the plain sweep, its picture, the map, states, the saved notebook."""

from __future__ import annotations

import re
import time

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter

import moelab
from moelab import plots
from moelab.analysis.expert_miss_ratio import expert_miss_ratio
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
        assert view.chart == chart_of(plots.policy_curves(plain, of))
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
    for wrong in ("folder", np.zeros((3, 2))):
        with pytest.raises(TypeError, match="CurveExplorer: trace is"):
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
