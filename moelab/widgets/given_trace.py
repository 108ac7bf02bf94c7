"""given_trace: the trace that a widget is given, in memory, and a sweep of that very trace.  Floor 6.

Takes what people have at hand, and says what to do about anything else. Does not know what is shown of it.
"""

from __future__ import annotations

from typing import Any

from moelab.domain.trace import Trace
from moelab.store import StoredTrace
from moelab.sweeps.result import SweepResult


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


def check_same_trace(result: SweepResult, trace: Trace) -> None:
    """ValueError for a sweep of another trace. Rows from before they had its fingerprint are told by their shape."""
    row, header = result.rows[0], trace.header
    found = (row["model"], row["num_layers"], row["num_experts"], row["top_k"])
    here = (header.model, header.num_layers, header.num_experts, header.top_k)
    if found != here or row.get("trace") not in (None, trace.fingerprint()):
        said = "{} ({} x {}, top-{}), {}".format
        raise ValueError(
            f"this sweep is of {said(*found, row.get('trace'))}; the trace is {said(*here, trace.fingerprint())}: "
            "expected a sweep of this very trace"
        )
