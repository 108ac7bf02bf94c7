"""LiveDecode in a real JupyterLab: text, map, figures, stop, plans between prompts; a busy kernel, a restart."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moelab.palette import PALETTE, rgb_of, viridis
from tests.widgets.jupyter import WAIT_MS
from tests.widgets.pixels import colour_at, drawn

pytestmark = pytest.mark.browser

PROMPT = "In the beginning there was a small machine that"
LOAD = """
import moelab
from moelab.planner.empty import empty
from moelab.widgets import LiveDecode
engine = moelab.load(moelab.shipped("nano/model"), virtual_nodes=2)
capture = moelab.open_trace(moelab.shipped("nano/capture")).load()
shared = {"nodes": 2, "held_out": 0.5, "phase": "decode"}
plans = {name: moelab.PLANNERS[name](capture, **shared) for name in ("round_robin", "coact")}
plans["lru"] = empty(engine.trace_header(), slots_per_layer=12, policy="lru")
"""
CELL = f"view = LiveDecode(engine, plans, prompt={PROMPT!r})\nview"
SHAPE = (6, 48)


def wait_for_colour(page, canvas, layer, expert, colour):
    """Frames follow messages: until a cell has its colour."""
    ends = time.monotonic() + WAIT_MS / 1000
    while tuple(colour_at(canvas, layer, expert, SHAPE)) != tuple(colour):
        assert time.monotonic() < ends, (layer, expert, colour, colour_at(canvas, layer, expert, SHAPE))
        page.wait_for_timeout(50)


def test_live_decode(open_notebook):
    notebook = open_notebook("live_decode", [LOAD, CELL])
    notebook.run_all()
    page = notebook.page
    widget = page.locator(".moelab-live-decode")
    widget.get_by_text("Write a prompt and press Generate").wait_for()
    canvas = drawn(page)
    button = {name: widget.locator(f"[data-do='{name}']") for name in ("generate", "stop", "apply")}
    text, figure = widget.locator(".moelab-live-text"), widget.locator
    assert button["stop"].is_disabled()
    dark_cell = list(viridis(0.0))
    assert colour_at(canvas, 0, 0, SHAPE) == dark_cell

    def read(name):
        return figure(f"[data-figure='{name}']").inner_text()

    # A prompt with a temperature, by keys: the page's text is generate's.
    widget.locator("[name='max_new_tokens']").fill("40")
    widget.locator("[name='temperature']").fill("0.7")
    widget.locator("[name='seed']").fill("4")
    widget.locator("[name='prompt']").press("Control+Enter")
    widget.get_by_text("Apply a plan and generate again").wait_for()
    asked = f"engine.generate({PROMPT!r}, 40, temperature=0.7, seed=4)"
    assert text.evaluate("e => e.textContent") == notebook.python(f"{asked}.text")
    rates = notebook.python("view.figures['gb_per_s_of_node']")
    assert read("node0 GB/s") == f"{float(f'{rates[0]:.3g}'):g}"
    assert figure(".moelab-node").count() == len(rates) == 1, "as loaded, homes are not told apart"
    # Lit are the latest token's experts, as the twin has them.
    glow = np.array(notebook.python("view.run.glow.tolist()"))
    for layer in range(6):
        for expert in (int(glow[layer].argmax()), int(glow[layer].argmin())):
            got = colour_at(canvas, layer, expert, SHAPE)
            assert np.abs(np.array(got) - viridis(glow[layer, expert])).max() <= 4
    lit = int(glow[0].argmax())
    assert colour_at(canvas, 0, lit, SHAPE) != dark_cell
    notebook.picture(widget, "live_decode")

    # What is typed and not yet sent stays, whatever else is changed.
    widget.locator("[name='prompt']").fill("typed only")
    for colour, label in (("uses", "uses in this prompt"), ("light", "used by the latest tokens")):
        widget.locator("[name='colour_by']").select_option(colour)
        widget.locator(".moelab-key").get_by_text(label).wait_for()
    assert widget.locator("[name='prompt']").input_value() == "typed only"
    widget.locator("[name='prompt']").fill(PROMPT)

    # A long one: text and map move while it runs, and Escape ends it.
    widget.locator("[name='max_new_tokens']").fill("100000")
    widget.locator("[name='temperature']").fill("0")
    button["generate"].click()
    widget.get_by_text("of at most 100000").wait_for()
    length = "document.querySelector('.moelab-live-text').textContent.length"
    page.wait_for_function(f"{length} > 20 && {length} < 100000")
    frames = int(canvas.get_attribute("data-frames"))
    page.wait_for_function("([c, n]) => Number(c.dataset.frames) > n + 2", arg=[canvas.element_handle(), frames])
    assert button["generate"].is_disabled()
    notebook.picture(widget, "live_decode_busy")
    widget.locator(".moelab-live-text").press("Escape")
    widget.get_by_text("Stopped after").wait_for()
    assert notebook.python("view.figures['finished_by']") == "cancelled"
    assert text.evaluate("e => e.textContent") == notebook.python("view.run.text")

    # A cell waits for it: Ctrl-C ends both.
    button["generate"].click()
    widget.get_by_text("of at most 100000").wait_for()
    ended = notebook.keep_busy("view.wait()")
    # "begun" is printed just before it waits; the thread that decodes may have the interpreter in between.
    page.wait_for_timeout(1000)
    notebook.interrupt()
    ended()
    widget.get_by_text("Stopped after").wait_for()
    assert notebook.python("view.figures['finished_by']") == "cancelled"

    # By the button, which is heard while a cell waits; then the same prompt under two plans.
    button["generate"].click()
    widget.get_by_text("of at most 100000").wait_for()
    ended = notebook.keep_busy("view.wait()")
    button["stop"].click()
    ended()
    widget.get_by_text("Stopped after").wait_for()
    widget.locator("[name='max_new_tokens']").fill("40")
    for number, plan in ((5, "round_robin"), (6, "coact")):
        widget.locator("[name='plan']").select_option(plan)
        button["apply"].click()
        widget.get_by_text(f"Applied {plan} in").wait_for()
        button["generate"].click()
        widget.get_by_text("Done after 40 tokens").wait_for()
        widget.locator("th", has_text=f"prompt {number}").wait_for()
        shares = notebook.python("view.figures['bytes_per_token_of_node']")
        assert len(shares) == figure(".moelab-node").count() == 2
        for node, share in enumerate(shares):
            kb, shown = share / 1e3, read(f"node{node} per token")
            assert shown.replace(",", "").endswith((" kB", " MB"))
            value = float(shown.split()[0].replace(",", "")) * (1e3 if shown.endswith("MB") else 1)
            assert value == pytest.approx(kb, rel=0.006)
    runs = notebook.python("view.runs")
    assert [run["plan"] for run in runs] == ["as loaded"] * 4 + ["round_robin", "coact"]
    assert runs[4]["bytes_per_token_of_node"] != runs[5]["bytes_per_token_of_node"]
    assert read("text") == "same as 5"
    assert read("plan") == "coact"
    widget.locator("[name='colour_by']").select_option("home")
    homes = np.array(notebook.python("view.map_layer('home').values.tolist()")).astype(int)
    page.wait_for_function("document.querySelector('.moelab-map .moelab-key').textContent.includes('several nodes')")
    for layer, expert in ((0, 0), (3, 20), (5, 47)):
        colour = rgb_of(PALETTE[homes[layer, expert]])
        wait_for_colour(page, canvas, layer, expert, colour)
    notebook.picture(widget, "live_decode_plans")

    # A fast tier: late and uploads are those of its report.
    widget.locator("[name='plan']").select_option("lru")
    button["apply"].click()
    widget.get_by_text("Applied lru in").wait_for()
    button["generate"].click()
    widget.locator("th", has_text="prompt 7").wait_for()
    widget.get_by_text("Done after 40 tokens").wait_for()
    report = notebook.python("(lambda r: [r.uploads, r.late])(engine.fast_tier.report())")
    shown = [[int(read(name + when).replace(",", "")) for when in ("", ", prefill")] for name in ("uploads", "late")]
    assert [sum(each) for each in shown] == report
    assert report[0] > 0
    notebook.picture(widget, "live_decode_fast_tier")

    # All of it in the other theme, while it stands on the page; then a prompt there.
    notebook.change_theme("dark")
    ground = widget.evaluate("e => getComputedStyle(e).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(ground[:3]) < 80
    widget.locator("[name='colour_by']").select_option("light")
    button["generate"].click()
    widget.locator("th", has_text="prompt 8").wait_for()
    widget.get_by_text("Done after 40 tokens").wait_for()
    glow = np.array(notebook.python("view.run.glow.tolist()"))
    for layer in range(6):
        wait_for_colour(page, canvas, layer, int(glow[layer].argmax()), viridis(1.0))
    notebook.picture(widget, "live_decode_fast_tier")
    widget.locator("[name='colour_by']").select_option("home")
    page.wait_for_function("document.querySelector('.moelab-map .moelab-key').textContent.includes('several nodes')")
    notebook.picture(widget, "live_decode_plans")

    # An error says what to do.
    widget.locator("[name='prompt']").fill("")
    button["generate"].click()
    widget.get_by_text("write one and press Generate").wait_for()
    notebook.picture(widget, "live_decode_error")

    # A restart while it generates.
    widget.locator("[name='prompt']").fill(PROMPT)
    widget.locator("[name='max_new_tokens']").fill("100000")
    button["generate"].click()
    widget.get_by_text("of at most 100000").wait_for()
    notebook.restart()
    notebook.run_all()
    widget.get_by_text("Write a prompt and press Generate").wait_for()
    assert notebook.save().stat().st_size < 200_000
