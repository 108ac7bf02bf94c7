"""The explorer in a real JupyterLab at Kimi K2's shape: every slider, menu, key and button against its plain twin."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.widgets.pixels import colour_at, drag_box, drawn

pytestmark = pytest.mark.browser

SHAPE = (60, 384)
TRACE = """
import numpy as np
import moelab
from moelab.synthetic import RoutingShape, Workload, generate, parameters_for
spec = moelab.ModelSpec.preset("kimi-k2.6")
work = Workload.random(2400, prefill=10, decode=60, seed=1)
trace = next(generate(RoutingShape.of_model(spec), parameters_for("kimi-k2.6"), work, batch_tokens=10**6))
"""
SHOW = """
from moelab.widgets import PlacementExplorer
view = PlacementExplorer(trace, moelab.Machine.preset("forge-moe-gen4"), spec)
view
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_look(open_notebook, theme):
    notebook = open_notebook("placement_explorer", [TRACE, SHOW], theme)
    notebook.run_all()
    page = notebook.page
    drawn(page)
    page.locator(".moelab-badge[data-preview='false']").wait_for()
    notebook.picture(page.locator(".moelab"), "placement_explorer")
