"""The map in a real JupyterLab: pixels, click, box, keys, both themes, a kernel restart."""

from __future__ import annotations

import numpy as np
import pytest

from moelab.palette import viridis
from tests.widgets.pixels import centre, colour_at, drag_box, drawn

pytestmark = pytest.mark.browser

CELL = """
import numpy as np
from moelab.widgets import ExpertMap
values = np.random.default_rng(3).random((12, 40)).astype(np.float32)
view = ExpertMap(values, label="load")
view
"""
VALUES = np.random.default_rng(3).random((12, 40)).astype(np.float32)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_map(open_notebook, theme):
    notebook = open_notebook("expert_map", [CELL], theme)
    notebook.run_all()
    page = notebook.page
    canvas = drawn(page)
    assert page.evaluate("document.body.dataset.jpThemeLight") == ("true" if theme == "light" else "false")

    share = (VALUES - VALUES.min()) / np.ptp(VALUES)
    for row, column in [(0, 0), (11, 39), (3, 17), (7, 2)]:
        got = colour_at(canvas, row, column, (12, 40))
        assert np.abs(np.array(got) - viridis(share[row, column])).max() <= 2, (row, column)

    canvas.click(position=centre(canvas, 5, 9, (12, 40)))
    page.get_by_text("1 chosen").wait_for()
    assert notebook.python("np.argwhere(view.chosen).tolist()") == [[5, 9]]
    assert f"layer 5, expert 9: load {VALUES[5, 9]:.4g}" in page.locator(".moelab-readout").inner_text()

    drag_box(page, canvas, (2, 3), (4, 6), (12, 40))
    page.get_by_text("12 chosen").wait_for()
    assert notebook.python("np.argwhere(view.chosen).tolist()") == [[r, c] for r in (2, 3, 4) for c in (3, 4, 5, 6)]
    notebook.picture(page.locator(".moelab"), "expert_map")

    canvas.press("Escape")
    page.get_by_text("0 chosen").wait_for()
    for key in ("ArrowDown", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", " "):
        canvas.press(key)
    page.get_by_text("4 chosen").wait_for()
    assert notebook.python("np.argwhere(view.chosen).tolist()") == [[5, 7], [5, 8], [6, 7], [6, 8]]
    assert page.locator(".jp-CodeCell").count() == 1, "a key of the map changed the notebook"

    notebook.restart()
    notebook.run_all()
    canvas = drawn(page)
    canvas.click(position=centre(canvas, 1, 1, (12, 40)))
    page.get_by_text("1 chosen").wait_for()
    assert notebook.python("np.argwhere(view.chosen).tolist()") == [[1, 1]]
