"""The page of a replay: the pictures, the table, what was run.  Floor 6.

Knows how to put results that exist onto a page; computes nothing but the miss-ratio curve's picture.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from moelab.analysis.miss_ratio_curve import miss_ratio_curve
from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.execution.result import ReplayResult
from moelab.html_report.page import pictures, write_page
from moelab.plots import bandwidth, load_map, miss_ratio, replay_times


def report(result: ReplayResult, trace: Trace, plan: Plan, path: str | Path) -> Path:
    """Write the page, whole or not at all; returns its path."""
    slots = plan.resident("fast0").sum(axis=1).mean() if "fast0" in plan.tiers else None
    curve = miss_ratio_curve(trace)
    shown = pictures(
        [
            replay_times(result),
            load_map(trace, plan),
            bandwidth(result),
            miss_ratio(curve, slots=slots, top_k=trace.header.top_k),
        ]
    )
    machine = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in result.machine.items())
    body = (
        f"{''.join(shown)}{result._repr_html_()}<h2>Machine</h2><table>{machine}</table>"
        f"<h2>Trace</h2>{trace._repr_html_()}<h2>Plan</h2>{plan._repr_html_()}"
    )
    return write_page(path, "moelab replay", body)
