"""The page of a simulation: reads by layer, loads with the plan's residents, the LRU curve, the tables.  Floor 6."""

from __future__ import annotations

from pathlib import Path

from moelab.analysis.miss_ratio_curve import miss_ratio_curve
from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.html_report.page import pictures, write_page
from moelab.plots import load_map, miss_ratio, simulated_reads
from moelab.simulator.result import SimResult


def report_simulation(result: SimResult, trace: Trace, plan: Plan, path: str | Path) -> Path:
    """Write the page of ``result``, ``simulate(trace, plan)``, whole or not at all; returns its path."""
    slots = None
    if plan.fast_tiers and (per_layer := plan.fast_tiers[0].slots_per_layer) is not None:
        slots = sum(per_layer) / len(per_layer)
    curve = miss_ratio_curve(trace, phase=result.phase)
    figures = [
        simulated_reads(result),
        load_map(trace, plan if plan.fast_tiers else None),
        miss_ratio(curve, slots=slots, top_k=trace.header.top_k),
    ]
    table = result.to_frame().to_html(index=False, border=0, float_format="{:.4g}".format, na_rep="")
    title = f"moelab simulate: {result.model} ({'synthetic' if result.synthetic else 'recorded'}), {result.policy}"
    body = (
        f"{''.join(pictures(figures))}{result._repr_html_()}<h2>By layer</h2>{table}"
        f"<h2>Trace</h2>{trace._repr_html_()}<h2>Plan</h2>{plan._repr_html_()}"
    )
    return write_page(path, title, body)
