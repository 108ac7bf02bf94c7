"""What all rows of one replay share. Floor 4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moelab.domain.machine import Machine
from moelab.domain.node_slowness import NodeSlowness
from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.execution.prediction import Prediction
from moelab.kernels import Pool
from moelab.simulator.simulate import SimResult


@dataclass(frozen=True)
class Run:
    """``machine`` gives the rates of the prediction, ``here`` is the one that it runs on, ``told`` what dispatch is."""

    trace: Trace
    plan: Plan
    simulated: SimResult
    scored_on: str
    machine: Machine
    here: Machine
    pool: Pool
    isa: str
    tokens: int | None
    trace_name: str
    plan_name: str
    progress: bool
    predictions: list[dict[str, Any]]
    notes: list[str]
    on_prediction: Callable[[str, Prediction], None]
    told: NodeSlowness
