"""Floor 6. Widgets for JupyterLab: one small Python class and one small ES module in ``js`` each.

A view holds no computation: what it shows is a plain call with the same numbers (its docstring names it). Everything is
bundled, nothing is fetched. ``widget`` (states, what a saved notebook shows), ``module`` (how the
JavaScript is put together), ``expert_map`` (the canvas layer x expert), then one file for each widget.
"""

from __future__ import annotations

from moelab.widgets.cost_calculator import CostCalculator
from moelab.widgets.curve_explorer import CurveExplorer
from moelab.widgets.expert_map import ExpertMap
from moelab.widgets.live_decode import LiveDecode
from moelab.widgets.placement_explorer import PlacementExplorer
from moelab.widgets.sizing_calculator import SizingCalculator
from moelab.widgets.trace_browser import TraceBrowser

__all__ = [
    "CostCalculator", "CurveExplorer", "ExpertMap", "LiveDecode", "PlacementExplorer", "SizingCalculator",
    "TraceBrowser",
]  # fmt: skip
