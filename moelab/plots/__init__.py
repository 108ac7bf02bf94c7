"""Floor 5. Pictures as plotly figures: one function for each picture, one template for all.

The palette is Okabe and Ito's (2008), told apart by colour-blind readers. Importing this package imports
plotly, nothing else does.
"""

from __future__ import annotations

from moelab.palette import PALETTE
from moelab.plots.bandwidth import bandwidth
from moelab.plots.break_even import break_even
from moelab.plots.coactivation_lifts import coactivation_lifts
from moelab.plots.lag_curve import lag_curve
from moelab.plots.load_map import load_map
from moelab.plots.miss_ratio import miss_ratio
from moelab.plots.placement_map import placement_map
from moelab.plots.policy_curves import policy_curves
from moelab.plots.popularity_curve import popularity_curve
from moelab.plots.regret_bars import regret_bars
from moelab.plots.replay_times import replay_times
from moelab.plots.simulated_reads import simulated_reads
from moelab.plots.speed_curve import speed_curve
from moelab.plots.stability_bars import stability_bars
from moelab.plots.template import TEMPLATE

__all__ = [
    "PALETTE",
    "TEMPLATE",
    "bandwidth",
    "break_even",
    "coactivation_lifts",
    "lag_curve",
    "load_map",
    "miss_ratio",
    "placement_map",
    "policy_curves",
    "popularity_curve",
    "regret_bars",
    "replay_times",
    "simulated_reads",
    "speed_curve",
    "stability_bars",
]
