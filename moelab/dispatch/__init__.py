"""Floor 1. Which copy serves which expert of one layer-step: one compiled function, ``dispatch``.

Simulator, planner, replay and engine call the same function object; ``assign`` is its face for Python.
"""

from __future__ import annotations

from moelab.dispatch.assign import Assignment, assign
from moelab.dispatch.dispatch import dispatch, scratch_length
from moelab.dispatch.lower_bound import lower_bound
from moelab.dispatch.signature import BOUNDED, EXACT, MOST_TIERS, NO_COPY, SIGNATURE

__all__ = [
    "BOUNDED", "EXACT", "MOST_TIERS", "NO_COPY", "SIGNATURE", "Assignment", "assign", "dispatch", "lower_bound",
    "scratch_length",
]  # fmt: skip
