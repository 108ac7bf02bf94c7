"""Floor 5. Pictures as plotly figures: one function for each picture, one template for all.

The palette is Okabe and Ito's (2008), told apart by colour-blind readers. Importing this package imports
plotly, nothing else does.
"""

from __future__ import annotations

from moelab.plots.bandwidth import bandwidth
from moelab.plots.load_map import load_map
from moelab.plots.miss_ratio import miss_ratio
from moelab.plots.replay_times import replay_times
from moelab.plots.template import PALETTE, TEMPLATE

__all__ = ["PALETTE", "TEMPLATE", "bandwidth", "load_map", "miss_ratio", "replay_times"]
