"""Floor 4. Trying placements by hand: settings and edits -> a plan and its figures, at once on a sample, then in full.

``Exploration`` is the plain-Python twin of ``moelab.widgets.PlacementExplorer``: every number that the widget shows is
one call here. A figure is always that of ``simulate`` on the held-out part, with an interval; a preview says that it is
one. ``LiveRun`` is that of ``moelab.widgets.LiveDecode``: one prompt in a running engine. Does not know widgets, nor
how a plan is carried out.
"""

from __future__ import annotations

from moelab.exploration.draft import Draft
from moelab.exploration.edit import ACTIONS, Edit
from moelab.exploration.explore import Exploration, Outcome
from moelab.exploration.fast_tier_size import FastTierSize, fast_tier_size
from moelab.exploration.figures import Figures
from moelab.exploration.homes_of_engine import homes_of_engine
from moelab.exploration.live_run import LiveRun
from moelab.exploration.live_step import LiveStep, LiveTotals
from moelab.exploration.map_layers import MAP_LAYERS
from moelab.exploration.select import select
from moelab.exploration.settings import Settings
from moelab.exploration.warm import warm

__all__ = [
    "ACTIONS", "MAP_LAYERS", "Draft", "Edit", "Exploration", "FastTierSize", "Figures", "LiveRun", "LiveStep",
    "LiveTotals", "Outcome", "Settings", "fast_tier_size", "homes_of_engine", "select", "warm",
]  # fmt: skip
