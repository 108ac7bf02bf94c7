"""Floor 3. A planner is one pure function (trace, model, machine, budget) -> Plan, one file each.

``PLANNERS`` finds it by name. A new planner is a new file and a line here. ``empty`` finds nothing, so it is not
among them: it is the fast tier that a policy fills.
"""

from __future__ import annotations

from collections.abc import Callable

from moelab.domain.plan import Plan
from moelab.planner.empty import empty
from moelab.planner.frequency import frequency
from moelab.planner.front_loading import front_loading
from moelab.planner.layer_balanced import layer_balanced
from moelab.planner.random import random
from moelab.planner.uniform import uniform
from moelab.planner.water_filled import water_filled

PLANNERS: dict[str, Callable[..., Plan]] = {
    "frequency": frequency,
    "uniform": uniform,
    "front_loading": front_loading,
    "random": random,
    "layer_balanced": layer_balanced,
    "water_filled": water_filled,
}

__all__ = ["PLANNERS", "empty", "frequency", "front_loading", "layer_balanced", "random", "uniform", "water_filled"]
