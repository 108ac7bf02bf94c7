"""The page of a sweep: misses and reads over the capacity, regret, then every row.  Floor 6."""

from __future__ import annotations

from pathlib import Path

from moelab.html_report.page import pictures, write_page
from moelab.plots import policy_curves, regret_bars
from moelab.sweeps.result import SweepResult


def report_sweep(result: SweepResult, path: str | Path) -> Path:
    """Write the page, whole or not at all; returns its path. Without its oracles a sweep has no regret."""
    figures = [policy_curves(result, of="misses"), policy_curves(result, of="reads")]
    if not result.missing_oracles() and any(row["oracle"] and not row["is_oracle"] for row in result.rows):
        figures.append(regret_bars(result))
    rows = result.to_frame().drop(columns=["key", "plan", "trace"])
    table = rows.to_html(index=False, border=0, float_format="{:.4g}".format, na_rep="")
    title = f"moelab sweep: {result.model} ({'synthetic' if result.synthetic else 'recorded'})"
    body = f"{''.join(pictures(figures))}{result._repr_html_()}<h2>Rows</h2><div style='overflow-x:auto'>{table}</div>"
    return write_page(path, title, body)
