"""One self-contained HTML page of a replay: the table, the pictures, what was run. Floor 6.

Knows how to put results that exist onto a page; computes nothing but the miss-ratio curve's picture.
The plotting library is written into the page, so that it opens without a network.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from moelab.analysis.miss_ratio_curve import miss_ratio_curve
from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.execution.result import ReplayResult
from moelab.plots import bandwidth, load_map, miss_ratio, replay_times

_CONFIG = {"displayModeBar": False, "responsive": True}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem;
color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0 } th, td { text-align: left; padding: .25rem .8rem .25rem 0;
border-bottom: 1px solid #e0e0e0; vertical-align: top } thead th { border-bottom: 2px solid #888 }
p { max-width: 60rem }
"""


def report(result: ReplayResult, trace: Trace, plan: Plan, path: str | Path) -> Path:
    """Write the page, whole or not at all; returns its path."""
    slots = plan.resident("fast0").sum(axis=1).mean() if "fast0" in plan.tiers else None
    curve = miss_ratio_curve(trace)
    figures = [
        replay_times(result),
        bandwidth(result),
        load_map(trace, plan),
        miss_ratio(curve, slots=slots, top_k=trace.header.top_k),
    ]
    pictures = [
        figure.to_html(full_html=False, include_plotlyjs=(number == 0), default_height="420px", config=_CONFIG)
        for number, figure in enumerate(figures)
    ]
    machine = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in result.machine.items())
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>moelab replay</title>"
        f"<style>{_STYLE}</style>"
        f"</head><body><h1>moelab replay</h1>{result._repr_html_()}{''.join(pictures)}"
        f"<h2>Machine</h2><table>{machine}</table><h2>Trace</h2>{trace._repr_html_()}<h2>Plan</h2>{plan._repr_html_()}"
        "</body></html>"
    )
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path
