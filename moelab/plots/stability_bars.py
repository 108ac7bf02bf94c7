"""Stability: how far the loads of each window and domain lie from all others, beside what shuffling would show."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moelab.analysis.stability import Groups, Stability
from moelab.plots.template import PALETTE, TEMPLATE, label


def stability_bars(stability: Stability) -> go.Figure:
    """One panel for windows, one for domains; raises ``ValueError`` where the trace has neither."""
    panels = [groups for groups in (stability.windows, stability.domains) if groups is not None]
    if not panels:
        raise ValueError("stability has neither windows nor domains, so there is nothing to draw: take a longer trace")
    titles = {"window": "windows of the trace", "domain": "domains"}
    figure = make_subplots(
        rows=1, cols=len(panels), subplot_titles=[titles[g.kind] for g in panels], shared_yaxes=True,
        horizontal_spacing=0.06,
    )  # fmt: skip
    for column, groups in enumerate(panels, start=1):
        _add(figure, groups, column)
    figure.update_yaxes(title_text="divergence from all others, bits", rangemode="tozero", col=1)
    figure.update_xaxes(tickangle=-35)
    figure.update_layout(
        template=TEMPLATE, title=f"Do hot experts stay hot? {label(stability)}", margin={"t": 90, "b": 150, "r": 40},
        legend={"orientation": "h", "y": -0.5},
    )  # fmt: skip
    return figure


def _add(figure: go.Figure, groups: Groups, column: int) -> None:
    names = [name.removeprefix("window ") for name in groups.names]
    error = None
    if np.isfinite(groups.low).any():
        error = {
            "type": "data", "symmetric": False, "array": np.clip(groups.high - groups.js, 0, None),
            "arrayminus": np.clip(groups.js - groups.low, 0, None), "thickness": 1,
        }  # fmt: skip
    figure.add_bar(
        x=names, y=groups.js, error_y=error, row=1, col=column, showlegend=column == 1,
        name="Jensen-Shannon divergence (95% interval over requests)" if error else "Jensen-Shannon divergence",
        marker_color=PALETTE[0], hovertemplate="%{x}: %{y:.3f} bits<extra></extra>",
    )  # fmt: skip
    if np.isfinite(groups.null_95).any():
        figure.add_scatter(
            x=names, y=groups.null_95, mode="markers", row=1, col=column, showlegend=column == 1,
            name="95% of shuffled requests: drift lies above", hovertemplate="%{x}: %{y:.3f} bits<extra></extra>",
            marker={"symbol": "line-ew", "size": 22, "line": {"color": PALETTE[1], "width": 3}},
        )  # fmt: skip
