"""Both calculators without a browser: the numbers of the plain call and of its picture, and what is said otherwise."""

from __future__ import annotations

import math
import re

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter

import moelab
from moelab import plots
from moelab.sizing import CostComparison, MachineCost, TokenPrices, Traffic
from moelab.widgets import CostCalculator, SizingCalculator
from moelab.widgets.chart import chart_of
from moelab.widgets.chart_svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, chart_svg, ticks

PRICES = {
    "input_per_million": 0.95, "output_per_million": 4.0, "cached_per_million": 0.16, "date": "2026-08",
    "source": "a list", "per_month": 1000.0, "machine_date": "2026-11", "machine_source": "assumed",
}  # fmt: skip


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"context": 131072, "batch": 8, "format": "Q4_K_M"},
        {"machine": "forge-moe-gen6", "layout": "whole", "kv_format": "fp8"},
        {"machine": "1x-epyc-9005-ddr5-6400+2x-rtx-5090", "routed_fast_gb": 20.0},
        {"machine": "desktop-ddr5-6000", "disk_gb_per_s": 6.0},
    ],
    ids=str,
)
def test_sizes_are_those_of_the_plain_call(inputs):
    machine = inputs.pop("machine", "forge-moe-gen4")
    view = SizingCalculator("kimi-k2.6", machine, **inputs)
    assert view.status == "ready", view.message
    said = eval(view.call, {"moelab": moelab})
    options = dict(inputs)
    if "routed_fast_gb" in options:
        options["routed_fast_bytes"] = int(options.pop("routed_fast_gb") * 1e9)
    plain = moelab.size("kimi-k2.6", machine, **options)
    for each in (view.sizing, said):
        assert each.to_dict() == plain.to_dict()
    assert dict(view.figures) == {name: str(text) for name, text in plain.summary().items()}
    if plain.prediction:
        assert f"{plain.prediction.tok_per_s:.1f} tok/s predicted" in view.headline
        assert view.chart == chart_of(plots.speed_curve(plain))
    else:
        assert "does not fit" in view.headline
        assert view.chart == {}


def test_documents_of_ones_own_and_wrong_inputs():
    spec = moelab.ModelSpec.preset("qwen3-30b-a3b")
    machine = moelab.Machine.preset("desktop-ddr5-6000").model_copy(update={"name": "mine"})
    view = SizingCalculator(spec, machine)
    assert view.sizing.to_dict() == moelab.size(spec, machine).to_dict()
    said = eval(view.call, {"moelab": moelab, "model": spec, "machine": machine})
    assert said.to_dict() == view.sizing.to_dict()
    before = view.inputs
    view.inputs = {"context": 4096}
    assert view.status == "error"
    assert "model" in view.message
    assert "change some by set(name=value)" in view.message
    view.inputs = before
    with pytest.raises(ValueError, match="colour: expected one of model, machine"):
        view.set(colour=1)
    view.set(format="nope")
    assert view.status == "error"
    assert "expected one of native" in view.message
    assert (view.sizing, view.picture, view.figures) == (None, "", [])
    view.set(context=None)
    assert (view.status, view.message) == ("empty", "Fill in: context.")
    view.inputs = before
    assert view.status == "ready"
    with pytest.raises(ValueError, match="colour"):
        SizingCalculator(colour=1)


def test_costs_are_those_of_the_plain_call():
    sizing = moelab.size("kimi-k2.6", "forge-moe-gen4")
    view = CostCalculator(sizing, tokens_per_month=1e8, input_share=0.5)
    assert view.status == "empty"
    assert view.message.startswith("Fill in: input (prices of the API), output (prices of the API), read on")
    view.set(**PRICES)
    assert view.status == "ready", view.message
    prices = TokenPrices(0.95, 4.0, "2026-08", "a list", cached_per_million=0.16)
    predicted = sizing.prediction
    plain = CostComparison(
        prices, MachineCost("2026-11", "assumed", per_month=1000.0), Traffic(0.5), predicted.tok_per_s,
        tok_per_s_interval=predicted.interval_tok_per_s,
    )  # fmt: skip
    assert view.comparison == plain
    assert f"{plain.break_even_tokens_per_month / 1e6:,.1f} million tokens" in view.headline
    names = {name.replace("_", " ") for name in plain.to_dict(1e8)}
    assert {name for name, _ in view.figures} == names
    assert view.chart == chart_of(plots.break_even(plain))
    said = eval(view.call, {k.__name__: k for k in (CostComparison, TokenPrices, MachineCost, Traffic)})
    assert said == plain
    view.set(prefill_tok_per_s=210.0, tok_per_s=1 / 3)
    said = eval(view.call, {k.__name__: k for k in (CostComparison, TokenPrices, MachineCost, Traffic)})
    assert said == view.comparison
    assert said.prefill_tok_per_s == 210.0
    view.set(tok_per_s=100.0)
    assert view.comparison.tok_per_s_interval is None, "the interval was that of another rate"
    view.set(ownership="purchase", purchase=15000.0, power_watts=900.0, idle_watts=300.0, price_per_kwh=0.2)
    assert view.comparison.machine.standing_per_month == pytest.approx(15000 / 48 + 0.3 * 730.5 * 0.2)
    view.set(idle_watts=2000.0)
    assert view.status == "error"
    assert "idle_watts is 2000" in view.message
    with pytest.raises(ValueError, match="no rate is predicted"):
        CostCalculator(moelab.size("kimi-k2.6", "desktop-ddr5-6000"))


def points_of(svg, series):
    """Corners of the line of a series, in the picture's units."""
    group = re.search(rf"<g data-series='{series}'>(.*?)</g>", svg).group(1)
    path = re.findall(r"<path d='([^']+)' fill='none'", group)[0]
    return np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", path)[1:]])


def test_the_picture_stands_where_the_numbers_are():
    """Both axes, linear and logarithmic, by a formula of this test."""
    sizing = SizingCalculator().sizing
    chart = chart_of(plots.speed_curve(sizing))
    predicted = next(n for n, one in enumerate(chart["series"]) if one["name"].startswith("predicted"))
    got, one = points_of(chart_svg(chart), predicted), chart["series"][predicted]
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    (x0, x1), (y0, y1) = plots.speed_curve(sizing).layout.xaxis.range, plots.speed_curve(sizing).layout.yaxis.range
    expected = [
        (LEFT + wide * (x - x0) / (x1 - x0), TOP + high * (1 - (y - y0) / (y1 - y0)))
        for x, y in zip(one["x"], one["y"], strict=True)
    ]
    np.testing.assert_allclose(got, expected, atol=0.006)

    view = CostCalculator(tok_per_s=15.0, **PRICES)
    rough = view.comparison.curve().tokens_per_month
    got = points_of(view.picture, 0)
    curve = view.comparison.curve(np.geomspace(rough.min(), rough.max(), len(got)).tolist())  # fine: machines are steps
    log_x, log_y = np.log10(curve.tokens_per_month), np.log10(curve.api_per_month)
    lowest = np.log10(min(curve.api_per_month.min(), curve.machine_per_month.min()))
    highest = np.log10(max(curve.api_per_month.max(), curve.machine_per_month.max()))
    np.testing.assert_allclose(got[:, 0], LEFT + wide * (log_x - log_x.min()) / np.ptp(log_x), atol=0.006)
    np.testing.assert_allclose(got[:, 1], TOP + high * (highest - log_y) / (highest - lowest), atol=0.006)
    assert ">the API costs what one machine does</text>" in view.picture


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_round_and_inside(seed):
    draw = np.random.default_rng(seed)
    low = draw.normal() * 10.0 ** draw.integers(-3, 6)
    axis = {"low": low, "high": low + draw.random() * 10.0 ** draw.integers(-3, 6), "log": False, "percent": False}
    got = ticks(axis)
    assert 2 <= len(got) <= 9
    assert all(axis["low"] - 1e-9 * abs(low) <= t <= axis["high"] + 1e-9 * abs(axis["high"]) for t in got)
    step = np.diff(got)
    assert np.allclose(step, step[0])
    mantissa = step[0] / 10 ** math.floor(math.log10(step[0]) + 1e-9)
    assert min(abs(mantissa - each) for each in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_ticks_of_a_logarithmic_axis(seed):
    """Round, inside, and never fewer than two, within one decade too."""
    draw = np.random.default_rng(seed)
    low = 10.0 ** draw.uniform(-3, 6)
    axis = {"low": low, "high": low * 10.0 ** draw.choice([0.05, 0.3, 0.9, 1.5, 4.0]), "log": True, "percent": False}
    got = ticks(axis)
    assert 2 <= len(got) <= 9
    assert got == sorted(got)
    assert all(axis["low"] * (1 - 1e-6) <= each <= axis["high"] * (1 + 1e-6) for each in got)


def test_a_saved_notebook_shows_the_picture_without_javascript():
    view = CostCalculator(tok_per_s=15.0, **PRICES | {"source": "<b>list</b>"})
    data, metadata = view._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("view", outputs=[output])])
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    assert "<svg" in page  # its attributes in lower case, which HTML allows
    assert view.headline in page
    assert "&lt;b&gt;list" in page
    assert len(nbformat.writes(notebook)) < 60_000


def test_several_streams_have_figures_and_no_curve():
    view = SizingCalculator(batch=4)
    assert (view.status, view.picture, view.chart) == ("ready", "", {})
    assert view.headline.endswith(", 4 streams together")
    assert view.summary() == {name: str(text) for name, text in view.sizing.summary().items()}
