"""Does a placement pay, measured: ``moelab bench placement``.  Floor 6.

Three parts. ``core``: plans ranked by prediction and by a clock, each virtual node its own server. ``memory``: cells of
plan, policy, capacity and batch beside the contention model, on one shared memory. ``pieces``: where cut experts win.
Calibration comes first, then predictions, then the measurement.
"""

from __future__ import annotations

from moelab.bench.placement.run import run

__all__ = ["run"]
