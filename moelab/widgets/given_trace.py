"""given_trace: the trace that a widget is given, in memory.  Floor 6.

Takes what people have at hand, and says what to do about anything else. Does not know what is shown of it.
"""

from __future__ import annotations

from typing import Any

from moelab.domain.trace import Trace
from moelab.store import StoredTrace


def given_trace(trace: Any, widget: str) -> Trace:
    """``trace`` itself, or a stored one read whole; TypeError that names ``widget`` for anything else."""
    if isinstance(trace, Trace):
        return trace
    if isinstance(trace, StoredTrace):
        return trace.load()
    raise TypeError(
        f"{widget}: trace is {type(trace).__name__}, expected a Trace or moelab.open_trace(folder); arrays become one "
        "by moelab.Trace.from_arrays(expert_ids)"
    )
