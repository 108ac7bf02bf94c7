"""The explorer in a real JupyterLab: every slider, menu, key and button against its plain twin, both themes.

On the capture that ships; how it looks and how quick it is, at the shapes of Kimi K2 and K3 (synthetic routing).
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from nbconvert import HTMLExporter

import moelab
from moelab.palette import ON_DARK, PALETTE, rgb_of, viridis
from tests.widgets.jupyter import SCREENSHOTS
from tests.widgets.pixels import centre, colour_at, drag_box, drawn

pytestmark = pytest.mark.browser

OPEN = """
import numpy as np
import moelab
from moelab.widgets import PlacementExplorer
trace = moelab.open_trace(moelab.shipped("nano/capture")).load()
trace = trace.requests(np.unique(trace.tokens.request)[:60])
engine = moelab.load(moelab.shipped("nano/model"), virtual_nodes=2)
view = PlacementExplorer(
    trace, moelab.Machine.preset("forge-moe-gen4"), engine=engine,
    replay_options={"expert_shape": "own", "tokens": 16},
)
"""
SHOW = "view"
TWIN = "view.exploration.{}(view.settings, view.edits).figures.as_dict()"


class Panel:
    """The page of one explorer, and its twin in the kernel."""

    def __init__(self, notebook):
        self.notebook, self.page = notebook, notebook.page
        self.canvas = drawn(self.page)
        self.shape = tuple(notebook.python("[view.num_layers, view.num_experts]"))

    def await_full(self):
        self.page.locator(".moelab:not([data-settled='false'])").wait_for()
        self.page.locator(".moelab-badge[data-preview='false']").wait_for()
        self.page.locator(".moelab-status[data-status='busy']").wait_for(state="hidden")

    def shown(self, name):
        text = self.page.locator(f"[data-figure='{name}']").first.inner_text()
        return text.replace(",", "")

    def check(self, call="full"):
        """What stands in the panel is what the plain call gives."""
        twin = self.notebook.python(TWIN.format(call))
        gap = "none" if twin["gap"] is None else f"{100 * twin['gap']:.1f}%"
        self.page.locator("[data-figure='gap to the bound']", has_text=gap).first.wait_for()
        for name, value, scale in (
            ("tok_per_s", twin["tok_per_s"], 1), ("reads per layer-step", twin["reads_per_layer_step"], 1),
            ("hit rate per routing", twin["hit_rate_per_routing"], 100), ("gap to the bound", twin["gap"], 100),
            ("ms per token", twin["ms_per_token"], 1),
        ):  # fmt: skip
            got = self.shown(name).split("(")[0].strip().rstrip("%")
            if value is None:
                assert got in ("none", "no time"), (name, got)
            else:
                assert float(got) == pytest.approx(scale * value, rel=6e-3, abs=0.06 if scale == 100 else 0), name
        for tier in twin["memory"]:
            row = self.page.locator(f".moelab-memory[data-tier='{tier['tier']}']")
            assert row.get_attribute("data-fits") == str(tier["fits"]).lower().replace("none", "null")
        return twin

    def press(self, do):
        self.page.locator(f".moelab button[data-do='{do}']").click()

    def says(self, words):
        self.page.locator(".moelab-message", has_text=words).wait_for()

    def notes(self, words):
        self.page.locator(".moelab-plan-note", has_text=words).wait_for()

    def edits(self, text):
        self.page.locator(".moelab-edits", has_text=text).wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_by_hand(open_notebook, theme):
    notebook = open_notebook("explorer_nano", [OPEN, SHOW], theme)
    notebook.run_all()
    panel, page = Panel(notebook), notebook.page
    panel.await_full()
    before = panel.check()
    rows, columns = panel.shape

    # a slider by its keys, a menu, nodes
    page.locator("input[data-setting='slots_per_layer']").focus()
    slots = notebook.python("view.slots_per_layer")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.locator(".moelab-slider output", has_text=f"{slots + 3} slots a layer").wait_for()
    panel.await_full()
    assert notebook.python("view.slots_per_layer") == slots + 3
    assert panel.check()["reads_per_layer_step"] < before["reads_per_layer_step"]
    page.locator("select[data-setting='policy']").select_option("lru")
    page.wait_for_function("() => document.querySelector('.moelab-note:last-child').textContent.includes('min_demand')")
    assert panel.check()["bound_of"].endswith("min_demand")
    page.locator("select[data-setting='policy']").select_option("static")
    panel.await_full()

    # a click, a box, a query, and what hands do to them
    panel.canvas.click(position=centre(panel.canvas, rows - 1, columns - 1, panel.shape))
    page.get_by_text("1 chosen", exact=True).wait_for()
    panel.press("pin")
    panel.edits("pin 1 expert")
    coldest = notebook.python("int(view._order[-1, -1])")
    assert notebook.python("view.plan.pinned") == [[rows - 1, coldest, "fast0"]]
    panel.canvas.press("z")
    page.wait_for_function("() => document.querySelector('.moelab-edits').textContent === ''")
    drag_box(page, panel.canvas, (0, columns - 2), (1, columns - 1), panel.shape)
    page.get_by_text("4 chosen", exact=True).wait_for()
    panel.canvas.press("f")
    panel.edits("move 4 experts to fast0")
    panel.await_full()
    panel.check()
    page.locator(".moelab-edit-bar input").fill('load < 1 and tier == "fast0"')
    page.locator(".moelab-edit-bar input").press("Enter")
    panel.says("experts chosen")
    assert notebook.python("view.num_selected") >= 4
    page.locator(".moelab-edit-bar input").fill("heat > 1")
    page.locator(".moelab-edit-bar input").press("Enter")
    panel.says("expected some of layer, expert, load")
    notebook.picture(page.locator(".moelab"), "explorer_error")
    panel.press("clear_edits")
    page.wait_for_function("() => document.querySelector('.moelab-edits').textContent === ''")
    panel.await_full()

    # colours of the map are the twin's
    page.locator("select[data-setting='colour_by']").select_option("tier")
    page.locator(".moelab-key", has_text="fast0").wait_for()
    page.keyboard.press("Escape")
    panel.canvas.press("Escape")
    page.get_by_text("0 chosen", exact=True).wait_for()
    values = np.array(notebook.python("np.take_along_axis(view.map_layer('tier').values, view._order, 1).tolist()"))
    palette = [ON_DARK if c == "#000000" and theme == "dark" else c for c in PALETTE]
    for row, column in [(0, 0), (0, columns - 1), (rows - 1, 1), (rows // 2, columns // 2)]:
        assert colour_at(panel.canvas, row, column, panel.shape) == list(rgb_of(palette[int(values[row, column])]))

    # two nodes: a plan beside plan A
    panel.press("keep")
    page.locator(".moelab-figures th", has_text="change").wait_for()
    page.locator("input[data-setting='slots_per_layer']").fill("0")
    page.locator(".moelab-slider output", has_text="0 slots a layer").first.wait_for()
    page.locator("input[data-setting='nodes']").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".moelab-slider output", has_text="2 nodes").wait_for()
    page.locator("select[data-setting='planner']").select_option("replicate")
    page.locator("input[data-setting='extra_memory']").fill("25")
    page.locator(".moelab-slider output", has_text="25% of one copy").wait_for()
    panel.await_full()
    twin = panel.check()
    assert list(twin["bytes_of_node"]) == ["node0", "node1"]
    kept = notebook.python("view.kept")
    change = page.locator(".moelab-figures tr", has_text="tok/s").locator("td").last.inner_text()
    share = twin["tok_per_s"] / kept["tok_per_s"] - 1
    assert change.startswith("+" if share > 0 else "\u2212")
    assert float(change.split("%")[0].lstrip("+\u2212")) == pytest.approx(abs(100 * share), abs=0.06)
    page.locator(".moelab-edit-bar input").fill("expert < 2 and layer == 1")
    page.locator(".moelab-edit-bar input").press("Enter")
    page.get_by_text("2 chosen", exact=True).wait_for()
    panel.press("split")
    panel.edits("split 2 experts")
    panel.press("undo")
    panel.press("replicate")
    panel.edits("replicate 2 experts")
    panel.await_full()
    panel.check()
    notebook.picture(page.locator(".moelab"), "explorer_two_plans")

    # where the gap comes from, in its colours
    page.locator("select[data-setting='colour_by']").select_option("regret")
    page.locator(".moelab-key", has_text="reads of the fullest node beyond the bound, per 1,000 steps").wait_for()
    panel.canvas.press("Escape")
    page.get_by_text("0 chosen", exact=True).wait_for()
    regret = "view.exploration.full(view.settings, view.edits).regret"
    values = np.array(notebook.python(f"np.take_along_axis({regret}, view._order, 1).tolist()"))
    low, high = notebook.python("[view.scale['low'], view.scale['high']]")
    hottest = np.unravel_index(values.argmax(), values.shape)
    assert values.max() > 0
    for row, column in [hottest, (0, 3), (rows - 1, columns - 1)]:
        share = min(1.0, max(0.0, (values[row, column] - low) / (high - low)))
        got = colour_at(panel.canvas, int(row), int(column), panel.shape)
        assert np.abs(np.array(got) - viridis(share)).max() <= 4, (row, column, share)
    notebook.picture(page.locator(".moelab"), "explorer_regret")

    if theme == "dark":
        return

    # save, apply, replay
    panel.press("save")
    panel.notes("Saved the plan as plan.json")
    saved = moelab.Plan.load(notebook.server.notebooks / "plan.json")
    assert saved.fingerprint() == notebook.python("view.plan.fingerprint()")
    assert saved.prediction["tok_per_s"] == pytest.approx(twin["tok_per_s"], rel=0.2)
    panel.press("apply")
    panel.notes("copies added")
    assert notebook.python("engine.routed[0].placement is not None")
    panel.press("replay")
    page.locator(".moelab-replay table").first.wait_for()
    assert "measured" in page.locator(".moelab-replay").inner_text()
    notebook.picture(page.locator(".moelab"), "explorer_replayed")

    notebook.restart()
    notebook.run_all()
    Panel(notebook).await_full()
    Panel(notebook).check()

    path = notebook.save()
    assert path.stat().st_size < 200_000
    html, _ = HTMLExporter(sanitize_html=False).from_filename(str(path))
    assert "data:image/png;base64" in html
    assert "reads_per_layer_step" in html


SLOWED = """
import time
quick = view.exploration.full
def slow(settings, edits, report):
    for _ in range(10_000):
        report("a long search", 0.3)
        time.sleep(0.05)
    return quick(settings, edits, report)
view.exploration.full = slow
view.nodes, view.slots_per_layer = 2, 0
view
"""
WAITS = "print('the cell waits', flush=True)\nview.wait()\nprint('the cell went on')"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_cancel_while_a_cell_waits(open_notebook, theme):
    """The kernel is busy with a cell that waits: the page's button, and the notebook's own, end it."""
    notebook = open_notebook("explorer_waits", [OPEN, SLOWED, WAITS], theme)
    notebook.begin_all()
    page = notebook.page
    page.locator(".moelab-message", has_text="a long search").wait_for()
    page.locator(".jp-OutputArea-output", has_text="the cell waits").wait_for()
    notebook.picture(page.locator(".moelab"), "explorer_waits")
    page.locator(".moelab button.moelab-cancel").click()
    page.locator(".moelab-message", has_text="Cancelled. The preview stands").wait_for()
    page.locator(".jp-OutputArea-output", has_text="the cell went on").wait_for()
    panel = Panel(notebook)
    top = "[['.moelab canvas', 1], ['.moelab', -1]].reduce((y, [e, s]) => y + s * document.querySelector(e).getBoundingClientRect().y, 0)"  # noqa: E501
    before = page.evaluate(top)
    assert notebook.python("view.say('ready')") is None
    page.locator(".moelab-status").wait_for(state="hidden")
    assert page.evaluate(top) == before, "the map does not jump when the line above it goes"
    assert notebook.python("view.say('busy', 'a long search', 0.1)") is None
    page.locator(".moelab-status progress").wait_for()
    assert page.evaluate(top) == before, "nor when it comes"
    assert notebook.python("view.cancel()") is None
    assert notebook.python("view.figures['is_preview']")
    assert notebook.python("view.settings.planner") == "replicate"
    panel.check("preview")  # with its gap, and the words that its interval is of the steps alone
    page.locator(".moelab-stand-in", has_text="A quick placement stands in for replicate").wait_for()
    page.locator(".moelab-speed", has_text="95% interval of the steps").wait_for()
    notebook.picture(page.locator(".moelab"), "explorer_cancelled")

    panel.press("full")
    page.locator(".moelab-message", has_text="a long search").wait_for()
    ended = notebook.keep_busy("view.wait()")
    page.wait_for_timeout(1000)  # "begun" is printed just before it waits; the search may have the interpreter
    notebook.interrupt()
    ended()
    page.locator(".moelab-message", has_text="Cancelled. The preview stands").wait_for()


SYNTHETIC = """
import dataclasses
import numpy as np
import moelab
from moelab.synthetic import RoutingShape, Workload, generate, parameters_for
from moelab.widgets import PlacementExplorer
spec = moelab.ModelSpec.preset("kimi-k2.6")
shape = RoutingShape.of_model(spec)
layers, experts, top_k = {shape}
shape = dataclasses.replace(
    shape, num_layers=layers, num_experts=experts, top_k=top_k, expert_bytes=shape.expert_bytes[:1] * layers,
    model_layer_of_layer=tuple(range(1, layers + 1)),
)
work = Workload.random({tokens}, prefill=10, decode=60, seed=1)
trace = next(generate(shape, parameters_for("kimi-k2.6"), work, batch_tokens=10**6))
view = PlacementExplorer(trace, moelab.Machine.preset("forge-moe-gen4"), spec if layers == 60 else None)
"""
CHANGE = """async (input) => {
  const panel = document.querySelector(".moelab-figures"), times = [];
  for (let n = 0; n < 12; n++) {
    const begin = performance.now();
    const answered = new Promise((seen) => {
      const look = new MutationObserver(() => { look.disconnect(); seen(); });
      look.observe(panel, { childList: true });
    });
    input.value = String(Number(input.value) + 1);
    input.dispatchEvent(new Event("input"));
    await answered;
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - begin);
  }
  return times;
}"""
ZOOM = """async (canvas) => {
  const frames = [];
  for (let n = 0; n < 40; n++) {
    const before = Number(canvas.dataset.frames);
    const event = new WheelEvent("wheel", { deltaY: n % 20 < 10 ? -1 : 1, ctrlKey: true, clientX: 500, clientY: 500, cancelable: true });
    canvas.dispatchEvent(event);
    await new Promise(requestAnimationFrame);
    while (Number(canvas.dataset.frames) === before) await new Promise(requestAnimationFrame);
    frames.push(Number(canvas.dataset.frameMs));
  }
  return frames;
}"""  # noqa: E501


@pytest.mark.parametrize(
    ("name", "theme", "shape", "tokens"), [("k2", "light", (60, 384, 8), 4800), ("k3", "dark", (93, 896, 16), 1600)]
)
def test_look_and_pace(open_notebook, name, theme, shape, tokens):
    notebook = open_notebook(f"explorer_{name}", [SYNTHETIC.format(shape=shape, tokens=tokens), SHOW], theme)
    notebook.run_all()
    panel, page = Panel(notebook), notebook.page
    panel.await_full()
    panel.check()
    notebook.picture(page.locator(".moelab"), f"explorer_{name}")
    if theme == "light":  # what is on the page follows the theme
        paper = page.locator(".moelab").evaluate("e => getComputedStyle(e).backgroundColor")
        frames = panel.canvas.get_attribute("data-frames")
        notebook.change_theme("dark")
        page.wait_for_function(f"e => e.dataset.frames !== '{frames}'", arg=panel.canvas.element_handle())
        assert page.locator(".moelab").evaluate("e => getComputedStyle(e).backgroundColor") != paper
        notebook.picture(page.locator(".moelab"), f"explorer_{name}")
    slider = page.locator("input[data-setting='slots_per_layer']")
    changes = slider.evaluate(CHANGE)
    box, before = slider.bounding_box(), int(slider.input_value())
    share = before / shape[1]
    page.mouse.move(box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + box["height"] / 2, steps=25)
    page.mouse.up()
    panel.await_full()  # the last position of a drag arrives, whatever was left out on the way
    assert notebook.python("view.slots_per_layer") == int(slider.input_value()) > before
    panel.check()
    frames = panel.canvas.evaluate(ZOOM)
    times = {
        "shape": shape, "change_ms": sorted(changes)[6], "change_worst_ms": max(changes),
        "preview_ms": notebook.python("view.preview_ms"), "frame_ms": sorted(frames)[20], "frame_worst_ms": max(frames),
    }  # fmt: skip
    (SCREENSHOTS / f"pace_{name}_{theme}.json").write_text(json.dumps(times))
    print(times)
    # Bounds of a machine that is busy with other things; the goal, 300 ms, is measured on a quiet one.
    assert times["change_ms"] < 1500
    assert times["frame_ms"] < 50
