"""The page of an analysis: pictures first, then every table.  Floor 6."""

from __future__ import annotations

from pathlib import Path

from moelab.analysis import Analysis
from moelab.analysis.miss_ratio_curve import miss_ratio_curve
from moelab.domain.counts import CountsTable
from moelab.domain.trace import Phase, Trace
from moelab.html_report.page import pictures, write_page
from moelab.plots import coactivation_lifts, lag_curve, load_map, miss_ratio, popularity_curve, stability_bars


def report_analysis(result: Analysis, source: Trace | CountsTable, path: str | Path) -> Path:
    """Write the page of ``result``, the analysis of ``source``, whole or not at all; returns its path."""
    if isinstance(source, Trace) and result.phase is not None:
        source = source.phase(Phase[result.phase.upper()])
    figures = [load_map(source), popularity_curve(result.popularity)]
    if result.lags is not None:
        figures.append(lag_curve(result.lags))
    if isinstance(source, Trace):
        figures.append(miss_ratio(miss_ratio_curve(source), top_k=source.header.top_k))
    if result.coactivation is not None:
        figures.append(coactivation_lifts(result.coactivation))
    if result.stability is not None and (result.stability.windows or result.stability.domains):
        figures.append(stability_bars(result.stability))
    title = f"moelab analyse: {result.model} ({result.routing})"
    return write_page(
        path, title, f"{''.join(pictures(figures))}{result._repr_html_()}<h2>Source</h2>{source._repr_html_()}"
    )
