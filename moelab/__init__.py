"""moelab: where should each expert of a mixture-of-experts model live?

Finds a placement, proves it on a recorded trace, and runs the model that way:
record -> analyse -> simulate -> plan -> apply -> replay. This module only names what users call;
everything is imported on first use, so that ``import moelab`` is quick and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moelab.analysis import analyse
    from moelab.calibration import calibrate, this_machine
    from moelab.domain.lossy import Lossy
    from moelab.domain.machine import Machine
    from moelab.domain.model import ModelSpec
    from moelab.domain.plan import Plan
    from moelab.domain.trace import NO_EXPERT, Phase, Trace
    from moelab.domain.trace_of_arrays import trace_of_arrays
    from moelab.engine.engine import load
    from moelab.engine.recording import record
    from moelab.execution.replay import replay
    from moelab.html_report import report
    from moelab.migration import apply
    from moelab.planner import PLANNERS
    from moelab.policies import POLICIES
    from moelab.shadows import shadow
    from moelab.simulator.simulate import simulate
    from moelab.sizing import size
    from moelab.sources import open_source
    from moelab.store import TraceWriter, open_trace, shipped, verify
    from moelab.sweeps import sweep

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "Lossy": "moelab.domain.lossy",
    "Machine": "moelab.domain.machine",
    "ModelSpec": "moelab.domain.model",
    "NO_EXPERT": "moelab.domain.trace",
    "PLANNERS": "moelab.planner",
    "POLICIES": "moelab.policies",
    "Phase": "moelab.domain.trace",
    "Plan": "moelab.domain.plan",
    "Trace": "moelab.domain.trace",
    "TraceWriter": "moelab.store",
    "analyse": "moelab.analysis",
    "apply": "moelab.migration",
    "calibrate": "moelab.calibration",
    "load": "moelab.engine.engine",
    "open_source": "moelab.sources",
    "open_trace": "moelab.store",
    "record": "moelab.engine.recording",
    "replay": "moelab.execution.replay",
    "report": "moelab.html_report",
    "shadow": "moelab.shadows",
    "shipped": "moelab.store",
    "simulate": "moelab.simulator.simulate",
    "size": "moelab.sizing",
    "sweep": "moelab.sweeps",
    "this_machine": "moelab.calibration",
    "trace_of_arrays": "moelab.domain.trace_of_arrays",
    "verify": "moelab.store",
}

__all__ = [*_MODULE_OF_NAME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF_NAME:
        return getattr(import_module(_MODULE_OF_NAME[name]), name)
    raise AttributeError(f"module 'moelab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
