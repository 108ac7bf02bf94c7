"""Bandwidth: GB/s of each layer as bars against the read limit, one colour for each node."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moelab.execution.result import ReplayResult
from moelab.kernels import Bandwidth
from moelab.plots.template import PALETTE, TEMPLATE


def bandwidth(measured: Bandwidth | ReplayResult) -> go.Figure:
    """One panel for each kind of weights; the dashed line is the read limit of the same run, per node.

    Of a replay, or what ``engine.bandwidth()`` gives.
    """
    tables = [measured] if isinstance(measured, Bandwidth) else [row.bandwidth for row in measured.rows]
    figure = make_subplots(
        rows=1, cols=len(tables), subplot_titles=[_title(table) for table in tables], horizontal_spacing=0.12
    )
    most_nodes = max(table.num_nodes for table in tables)
    for column, table in enumerate(tables, start=1):
        for total in table.totals:
            rows = [row for row in table.rows if row.node == total.node]
            name, colour = f"node{total.node}", PALETTE[total.node % len(PALETTE)]
            first = column == 1 or total.node >= min(t.num_nodes for t in tables)
            figure.add_bar(
                row=1, col=column, x=[str(row.layer) for row in rows], y=[row.gb_per_s for row in rows], name=name,
                legendgroup=name, showlegend=first and most_nodes > 1, marker_color=colour,
                customdata=[_text(row.percent_of_read_limit) for row in rows],
                hovertemplate="layer %{x}, " + name + ": %{y:.1f} GB/s%{customdata}<extra></extra>",
            )  # fmt: skip
            figure.add_scatter(
                row=1, col=column, x=[str(row.layer) for row in rows], y=[total.read_limit_gb_per_s] * len(rows),
                mode="lines", line={"color": colour if most_nodes > 1 else PALETTE[6], "dash": "dash", "width": 2},
                name=f"read limit, {name}" if most_nodes > 1 else "read limit of the same run",
                legendgroup=f"limit {name}", showlegend=first,
                hovertemplate=f"read limit of {name}: %{{y:.1f}} GB/s<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title_text="MoE layer", type="category")
    figure.update_yaxes(title_text="GB/s of weights", rangemode="tozero", col=1)
    figure.update_layout(
        template=TEMPLATE, title="What the kernels read of each layer, counted, against the read limit",
        barmode="group", margin={"t": 90},
    )  # fmt: skip
    return figure


def _title(table: Bandwidth) -> str:
    of_nodes = [total.percent_of_read_limit for total in table.totals]
    title = table.title.split(":")[0] + (f", {table.num_nodes} virtual nodes" if table.virtual_nodes else "")
    if table.cache_resident:
        return f"{title}: in the cache"
    there = [f"{percent:.0f}%" for percent in of_nodes if percent is not None]
    return title + (f": {', '.join(there)} of the read limit" if there else "")


def _text(percent: float | None) -> str:
    return "" if percent is None else f", {percent:.0f}% of the read limit"
