"""explorer_inputs: what a placement explorer may be given, made into a trace and a machine.  Floor 6.

Takes what people have at hand, and says what to do about anything else.
"""

from __future__ import annotations

from typing import Any

from moelab.domain.machine import Machine
from moelab.domain.trace import Trace
from moelab.store import StoredTrace


def trace_of(given: Any) -> Trace:
    """A trace, or a stored one read whole; TypeError for anything else."""
    if isinstance(given, Trace):
        return given
    if isinstance(given, StoredTrace):
        return given.load()
    raise TypeError(
        f"trace is {type(given).__name__}, expected a Trace or moelab.open_trace(folder); arrays become one by "
        "moelab.Trace.from_arrays(expert_ids)"
    )


def machine_of(given: Any) -> Machine | None:
    """A machine, a preset by its name, or none; TypeError for anything else."""
    if isinstance(given, str):
        return Machine.preset(given)
    if given is None or isinstance(given, Machine):
        return given
    raise TypeError(
        f"machine is {type(given).__name__}, expected a Machine: moelab.this_machine(), or a preset by its name"
    )
