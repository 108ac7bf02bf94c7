"""CurveExplorer in a real JupyterLab: click and keys on the chart, box on the map, checkboxes; numbers and pixels."""

from __future__ import annotations

import numpy as np
import pytest

import moelab
from moelab.analysis.expert_miss_ratio import expert_miss_ratio
from moelab.palette import PALETTE, rgb_of, viridis
from moelab.widgets.chart_svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from tests.widgets.pixels import colour_at, drag_box, drawn
from tests.widgets.screenshot import around, has_colour

pytestmark = pytest.mark.browser

CELL = """
import moelab
from moelab.widgets import CurveExplorer
trace = moelab.open_trace(moelab.shipped("nano/capture")).load(slice(0, 4000))
view = CurveExplorer(trace, ["lru", "admit_ema_lfu"], [5, 10, 20])
view
"""
SHAPE = (6, 48)


def place(chart, x, y):
    """A point of the chart in the picture's units, linear axes."""
    across = (x - chart["x"]["low"]) / (chart["x"]["high"] - chart["x"]["low"])
    up = (y - chart["y"]["low"]) / (chart["y"]["high"] - chart["y"]["low"])
    return LEFT + (WIDTH - LEFT - RIGHT) * across, TOP + (HEIGHT - TOP - BOTTOM) * (1 - up)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_curve_explorer(open_notebook, theme):
    trace = moelab.open_trace(moelab.shipped("nano/capture")).load(slice(0, 4000))
    plain = moelab.sweep(
        trace, ["lru", "admit_ema_lfu"], [5, 10, 20], phase="decode", oracles=True, progress=False
    ).to_frame()
    ratios = expert_miss_ratio(trace, phase="decode")
    notebook = open_notebook("curve_explorer", [CELL], theme)
    notebook.run_all()
    page = notebook.page
    widget = page.locator(".moelab-curve-explorer")
    widget.locator(".moelab-sizes td").first.wait_for()
    widget.scroll_into_view_if_needed()

    def check(slots):
        widget.get_by_text(f"missed by an LRU of {slots} slots per layer, about", exact=True).wait_for()
        at = plain[plain.slots == slots].set_index("policy")
        for row in widget.locator(".moelab-sizes tr").all()[1:]:
            name = row.locator("th").inner_text().removesuffix(" (oracle)")
            missed, reads, _ = row.locator("td").all_inner_texts()
            assert missed == f"{100 * (1 - at.hit_rate_per_request[name]):.1f}%"
            assert float(reads) == pytest.approx(at.reads_per_layer_step[name], rel=0.006)
        canvas, values = drawn(page), ratios.at(slots)
        for row, column in [(0, 0), (5, 47), (2, 20)]:
            got = colour_at(canvas, row, column, SHAPE)
            assert np.abs(np.array(got) - viridis(values[row, column])).max() <= 2

    check(10)
    chart = notebook.python("view.chart")
    line = next(one for one in chart["series"] if one["name"] == "lru")
    svg = widget.locator(".moelab-chart > svg")
    x, y = place(chart, line["x"][1], line["y"][1])
    assert has_colour(around(svg, x, y, WIDTH), rgb_of(line["colour"]))
    assert line["y"][1] == pytest.approx(
        1 - plain[(plain.policy == "lru") & (plain.slots == 10)].hit_rate_per_request.item()
    )

    # A click on the chart at 20 slots; then by keys to 5.
    box = svg.bounding_box()
    svg.click(position={"x": place(chart, 20, 0.5)[0] * box["width"] / WIDTH, "y": box["height"] / 2})
    check(20)
    assert notebook.python("view.slots") == 20
    picture = widget.locator(".moelab-chart")
    picture.focus()
    picture.press("Home")
    assert "lru:" in widget.locator(".moelab-chart-readout").inner_text()
    picture.press("Enter")
    check(5)
    size = widget.locator("[name='slots']")
    size.focus()
    size.press("ArrowRight")
    check(10)

    # A box on the map: the curve of those experts, in its own colour where the plain call says.
    drag_box(page, drawn(page), (1, 3), (2, 30), SHAPE)
    widget.get_by_text("LRU, the 56 experts chosen on the map, about").first.wait_for()
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 3:31] = True
    assert notebook.python("view.chosen.tolist()") == mask.tolist()
    own = ratios.curve(mask)
    chart = notebook.python("view.chart")
    x, y = place(chart, 15, own[15])
    assert has_colour(around(svg, x, y, WIDTH), rgb_of(PALETTE[5]))
    notebook.picture(widget, "curve_explorer")

    # The same in GB: a click there chooses the size of as many bytes.
    widget.locator("[name='axis']").select_option("GB")
    widget.get_by_text("GB of the fast tier, all layers together").first.wait_for()
    chart = notebook.python("view.chart")
    gb = sum(trace.header.expert_bytes) / 1e9
    assert chart["series"][-1]["x"][0] == pytest.approx(5 * gb)
    x, y = place(chart, 15 * gb, own[15])
    assert has_colour(around(svg, x, y, WIDTH), rgb_of(PALETTE[5]))
    box = svg.bounding_box()
    svg.click(position={"x": place(chart, 20 * gb, 0.5)[0] * box["width"] / WIDTH, "y": box["height"] / 2})
    widget.get_by_text("missed by an LRU of 20 slots per layer, about", exact=True).wait_for()
    assert notebook.python("view.slots") == 20
    assert "GB of the fast tier" in widget.locator(".moelab-chart-readout").inner_text()
    notebook.picture(widget, "curve_explorer_gb")
    widget.locator("[name='axis']").select_option("slots")
    widget.get_by_text("slots of all 6 layers together (of 288 experts)").first.wait_for()
    widget.locator("[name='axis']").select_option("slots per layer")

    widget.locator("[name='of']").select_option("reads")
    widget.get_by_text("What is read").first.wait_for()
    widget.locator("[type='checkbox'][name='lru']").uncheck()
    page.wait_for_function("() => document.querySelectorAll('.moelab-chart [data-series]').length === 3")
    notebook.picture(widget, "curve_explorer_reads")
    assert page.locator(".jp-CodeCell").count() == 1

    notebook.restart()
    notebook.run_all()
    widget.locator(".moelab-sizes td").first.wait_for()
    check(10)
    assert notebook.save().stat().st_size < 200_000


SLOW = """
import moelab
from moelab.widgets import CurveExplorer
trace = moelab.open_trace(moelab.shipped("nano/capture"))
view = CurveExplorer(trace, ["lru", "arc", "sieve", "s3_fifo", "lfru", "w_tinylfu"], range(2, 40, 2))
view
"""


def test_cancel_and_begin_again_by_its_buttons(open_notebook):
    notebook = open_notebook("curve_explorer_cancel", [SLOW])
    notebook.run_all()
    widget = notebook.page.locator(".moelab-curve-explorer")
    widget.get_by_role("button", name="Cancel").click()
    widget.get_by_text("Cancelled. Press Simulate to begin again.").wait_for()
    assert widget.locator("canvas").is_hidden()
    notebook.picture(widget, "curve_explorer_cancelled")
    widget.get_by_role("button", name="Simulate").click()
    widget.locator(".moelab-status[data-status='busy']").wait_for()
    assert widget.get_by_role("button", name="Simulate").is_hidden()
    notebook.picture(widget, "curve_explorer_busy")
    widget.get_by_role("button", name="Cancel").click()
    widget.get_by_text("Cancelled.").wait_for()
    assert notebook.python("view.sweep is None")
