"""TraceBrowser in a real JupyterLab: list, menus, sliders, clicks and keys; numbers and pixels of the plain calls."""

from __future__ import annotations

import numpy as np
import pytest

import moelab
from moelab.analysis.token_routes import token_routes, token_values
from moelab.palette import PALETTE, rgb_of, viridis
from tests.widgets.screenshot import has_colour, pixels

pytestmark = pytest.mark.browser

RECORD = """
import moelab
from moelab.engine.prompts import read_prompts
from moelab.widgets import TraceBrowser
prompts = read_prompts(moelab.shipped("nano/prompts.jsonl"))[16:76:15]
with moelab.load(moelab.shipped("nano/model")) as engine:
    with moelab.record(engine, "recorded", domains=sorted({p.domain for p in prompts}), keep_text=True):
        for p in prompts:
            engine.generate(p.prompt[:200], 40, domain=p.domain)
"""
CELL = """
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(str(moelab.shipped("nano/model") / "tokenizer.json"))
trace = moelab.open_trace("recorded").load()
view = TraceBrowser(trace, decode=tokenizer.decode)
view
"""


def background(span):
    return span.evaluate("e => getComputedStyle(e).backgroundColor.match(/\\d+/g).map(Number)")


def expected_colours(values, names):
    known = values[np.isfinite(values)]
    if names:
        return [(160, 160, 160) if np.isnan(v) else rgb_of(PALETTE[int(v)]) for v in values]
    return [tuple(viridis((v - known.min()) / np.ptp(known))) if np.isfinite(v) else (160, 160, 160) for v in values]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_trace_browser(open_notebook, theme):
    notebook = open_notebook("trace_browser", ["!rm -rf recorded\n" + RECORD, CELL], theme)
    notebook.run_all()
    trace = moelab.open_trace(notebook.server.notebooks / "recorded").load()
    page = notebook.page
    widget = page.locator(".moelab-trace-browser")
    widget.scroll_into_view_if_needed()
    tokens = widget.locator(".moelab-text [data-token]")
    tokens.first.wait_for()
    numbers = [int(text.split(":")[0]) for text in widget.locator(".moelab-requests option").all_inner_texts()]
    assert numbers == list(dict.fromkeys(trace.tokens.request.tolist()))

    # The text of another request, by the list's own keys.
    listed = widget.locator(".moelab-requests")
    listed.focus()
    for _ in range(3):
        listed.press("ArrowDown")
    page.wait_for_function("n => document.querySelector('.moelab-requests').value === n", arg=str(numbers[3]))
    request = numbers[3]
    rows = np.flatnonzero(trace.tokens.request == request)
    page.wait_for_function("n => document.querySelectorAll('.moelab-text [data-token]').length === n", arg=len(rows))
    assert notebook.python("view.request") == request
    assert tokens.count() == len(rows) == len(notebook.python("view.pieces"))
    assert (
        widget.locator(".moelab-text").inner_text().strip()[:30] == "".join(notebook.python("view.pieces")).strip()[:30]
    )

    def check(plain):
        colours = expected_colours(plain.values, plain.names)
        for at in (0, 1, len(rows) // 2, len(rows) - 1):
            got = background(tokens.nth(at))
            assert np.abs(np.array(got[:3]) - colours[at]).max() <= 2, (at, got, colours[at])

    check(token_values(trace, request, "expert"))
    layer = widget.locator("[name='layer']")
    layer.focus()
    layer.press("ArrowRight")
    layer.press("ArrowRight")
    widget.get_by_text("expert in slot 0, layer 3").wait_for()
    check(token_values(trace, request, "expert", layer=2))
    notebook.picture(widget, "trace_browser")
    widget.locator("[name='by']").select_option("gate weight")
    widget.get_by_text("gate weight of slot 0, layer 3").wait_for()
    check(token_values(trace, request, "gate weight", layer=2))
    widget.locator("[name='by']").select_option("step")
    widget.get_by_text("step, from the request's first on").wait_for()
    check(token_values(trace, request, "step"))
    assert layer.is_hidden()

    # A token's routes on click, then by keys; pixels of the token on the screen.
    at = next(n for n in range(5, len(rows)) if len(notebook.python("view.pieces")[n].strip()) > 2)
    tokens.nth(at).click()
    widget.locator(".moelab-routes td").first.wait_for()

    def routes():
        return [
            [int(text.split()[0]) for text in row.locator("td").all_inner_texts()]
            for row in widget.locator(".moelab-routes tr").all()
        ]

    def plain_routes(token):
        frame = token_routes(trace, request, token)
        return [frame[frame.layer == layer].expert.tolist() for layer in trace.header.model_layer_of_layer]

    assert routes() == plain_routes(at)
    step = token_values(trace, request, "step").values
    shade = tuple(viridis(step[at] / step.max()))
    assert has_colour(pixels(tokens.nth(at).screenshot()).reshape(-1, 3), shade, 8)
    text = widget.locator(".moelab-text")
    text.focus()
    text.press("ArrowRight")
    widget.get_by_text(f"token {at + 1}:").wait_for()
    assert routes() == plain_routes(at + 1)
    assert notebook.python("view.token") == at + 1

    # One of its experts: who else uses it.
    expert = plain_routes(at + 1)[4][1]
    widget.locator(f".moelab-routes [data-layer='4'][data-expert='{expert}']").click()
    widget.get_by_text(f"expert {expert}, layer 5").wait_for()
    check(token_values(trace, request, "one expert", layer=4, expert=expert))
    notebook.picture(widget, "trace_browser_routes")
    text.press("Escape")
    widget.get_by_text("Click a token").wait_for()
    assert page.locator(".jp-CodeCell").count() == 2

    notebook.restart()
    notebook.run_all()
    tokens.first.wait_for()
    tokens.nth(2).click()
    widget.locator(".moelab-routes td").first.wait_for()
    assert notebook.save().stat().st_size < 200_000
