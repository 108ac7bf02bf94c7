"""Both calculators in a real JupyterLab: every field, numbers and pixels against the plain call, themes, a restart."""

from __future__ import annotations

import pytest

import moelab
from moelab.palette import PALETTE, rgb_of
from moelab.sizing import CostComparison, MachineCost, TokenPrices, Traffic
from moelab.widgets.chart_svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from tests.widgets.screenshot import around, has_colour

pytestmark = pytest.mark.browser

SIZING = """
from moelab.widgets import CostCalculator, SizingCalculator
view = SizingCalculator("kimi-k2.6", "forge-moe-gen4")
view
"""
COST = """
cost = CostCalculator(view.sizing)
cost
"""


def field(widget, name):
    return widget.locator(f"[name='{name}']")


def figures(widget):
    rows = widget.locator(".moelab-answers tr")
    return dict(zip(rows.locator("th").all_inner_texts(), rows.locator("td").all_inner_texts(), strict=True))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_calculators(open_notebook, theme):
    notebook = open_notebook("calculators", [SIZING, COST], theme)
    notebook.run_all()
    page = notebook.page
    sizing = page.locator(".moelab-calculator").nth(0)
    sizing.scroll_into_view_if_needed()
    sizing.get_by_text("tok/s predicted").wait_for()
    plain = moelab.size("kimi-k2.6", "forge-moe-gen4")
    assert figures(sizing) == {name: str(text) for name, text in plain.summary().items()}

    # The predicted line is where the prediction says, in its colour: pixels, at a place where nothing crosses it.
    chart = notebook.python("view.chart")
    line = next(one for one in chart["series"] if one["name"].startswith("predicted"))
    at = len(line["x"]) * 9 // 10
    x = LEFT + (WIDTH - LEFT - RIGHT) * (line["x"][at] - chart["x"]["low"]) / (chart["x"]["high"] - chart["x"]["low"])
    share = (line["y"][at] - chart["y"]["low"]) / (chart["y"]["high"] - chart["y"]["low"])
    y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)
    svg = sizing.locator(".moelab-chart > svg")
    assert has_colour(around(svg, x, y, WIDTH), rgb_of(PALETTE[0]))
    assert not has_colour(around(svg, x, y - 12, WIDTH), rgb_of(PALETTE[0]))

    # The chart read by keys: the same numbers.
    picture = sizing.locator(".moelab-chart")
    picture.focus()
    picture.press("End")
    picture.press("ArrowLeft")
    text = sizing.locator(".moelab-chart-readout").inner_text()
    assert f"predicted for kimi-k2.6, native: {line['y'][-2]:.3g}"[:40] in text
    notebook.picture(sizing, "sizing_calculator")

    # Each kind of field: select, number, slider, an optional number; then back from an error.
    field(sizing, "format").select_option("Q4_K_M")
    field(sizing, "context").fill("32768")
    slider = field(sizing, "batch")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    field(sizing, "routed_fast_gb").fill("2")
    page.get_by_text("batch=4", exact=False).first.wait_for()
    sizing.get_by_text("routed_fast_bytes=2000000000").wait_for()
    changed = moelab.size(
        "kimi-k2.6", "forge-moe-gen4", format="Q4_K_M", context=32768, batch=4, routed_fast_bytes=2_000_000_000
    )
    assert figures(sizing) == {name: str(text) for name, text in changed.summary().items()}
    assert notebook.python("view.sizing.to_dict()['predicted_tok_per_s']") == changed.prediction.tok_per_s
    field(sizing, "routed_fast_gb").fill("5000")
    sizing.locator(".moelab-status[data-status='error']").wait_for()
    assert "5000.0 GB of experts on the GPUs, expected at most 7.5 GB" in sizing.locator(".moelab-message").inner_text()
    assert figures(sizing) == {}
    notebook.picture(sizing, "sizing_calculator_error")
    field(sizing, "routed_fast_gb").fill("")
    sizing.get_by_text("tok/s predicted").wait_for()
    field(sizing, "context").fill("")
    sizing.get_by_text("Fill in: context.").wait_for()
    field(sizing, "context").fill("8192")
    field(sizing, "machine").select_option("desktop-ddr5-6000")
    sizing.get_by_text("does not fit", exact=True).wait_for()
    assert sizing.locator(".moelab-figure").is_hidden()

    cost = page.locator(".moelab-calculator").nth(1)
    cost.scroll_into_view_if_needed()
    cost.get_by_text("Fill in: input (prices of the API)").wait_for()
    notebook.picture(cost, "cost_calculator_empty")
    for name, value in {
        "input_per_million": "0.95", "output_per_million": "4", "date": "2026-08", "source": "a list",
        "per_month": "1000", "machine_date": "2026-11", "machine_source": "assumed", "tokens_per_month": "2e8",
    }.items():  # fmt: skip
        field(cost, name).fill(value)
    cost.get_by_text("break-even at").first.wait_for()
    share = field(cost, "input_share")
    share.focus()
    share.press("Home")
    cost.get_by_text("Traffic()", exact=False).wait_for()

    twin = CostComparison(
        TokenPrices(0.95, 4.0, "2026-08", "a list"), MachineCost("2026-11", "assumed", per_month=1000.0), Traffic(0.0),
        plain.prediction.tok_per_s, tok_per_s_interval=plain.prediction.interval_tok_per_s,
    )  # fmt: skip
    shown = figures(cost)
    assert shown["break even tokens per month"] == f"{twin.break_even_tokens_per_month:,.0f}"
    assert shown["utilisation"] == f"{twin.to_dict(2e8)['utilisation']:,.4g}"
    notebook.picture(cost, "cost_calculator")
    field(cost, "ownership").select_option("purchase")
    field(cost, "purchase").fill("15000")
    cost.get_by_text("purchase=15000").wait_for()
    assert field(cost, "per_month").is_hidden()
    assert page.locator(".jp-CodeCell").count() == 2, "a key of the form changed the notebook"

    notebook.restart()
    notebook.run_all()
    sizing = page.locator(".moelab-calculator").nth(0)
    sizing.get_by_text("tok/s predicted").wait_for()
    field(sizing, "machine").select_option("forge-moe-gen6")
    sizing.get_by_text("forge-moe-gen6").last.wait_for()
    assert notebook.save().stat().st_size < 200_000
