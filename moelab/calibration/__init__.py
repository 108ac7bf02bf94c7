"""Floor 3. ``moelab.calibrate()``: measure this machine; and which machine a command means.

``quick_probe`` takes three seconds and knows one node; ``calibrate`` takes up to two minutes and fills
``machine.json``: reads by thread count and origin, expert kernels whole and in pieces, overheads,
nodes at once, copies beside kernels.
(The room is not called calibrate, because a package of that name would hide the function.)
"""

from __future__ import annotations

from moelab.calibration.calibrate import calibrate
from moelab.calibration.machine_files import machine_file, resolve_machine, this_machine
from moelab.calibration.probe import quick_probe

__all__ = ["calibrate", "machine_file", "quick_probe", "resolve_machine", "this_machine"]
