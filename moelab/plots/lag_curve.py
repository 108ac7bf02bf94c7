"""Lag curve: how much of a token's experts an earlier token of the request used too, beside its baselines."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moelab.analysis.lag_overlap import LagOverlap
from moelab.plots.template import PALETTE, TEMPLATE, label


def lag_curve(lags: LagOverlap) -> go.Figure:
    """Overlap over the lag, with its interval, and thin lines for the layers."""
    figure = go.Figure()
    x = list(lags.lags)
    for layer in lags.overlap:
        figure.add_scatter(
            x=x, y=layer, mode="lines", showlegend=False, hoverinfo="skip", line={"color": "#cccccc", "width": 1}
        )
    if np.isfinite(lags.low).any():
        figure.add_scatter(
            x=x + x[::-1], y=[*lags.high, *lags.low[::-1]], fill="toself", fillcolor="rgba(0, 114, 178, 0.25)",
            mode="lines", line={"width": 0}, hoverinfo="skip", name="95% interval over requests",
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=lags.mean, mode="lines+markers", name="overlap, all layers", line={"color": PALETTE[0], "width": 3},
        hovertemplate="lag %{x}: %{y:.1%}<extra></extra>",
    )  # fmt: skip
    for name, values, color in (
        ("two tokens of the same request, any order", lags.same_request, PALETTE[1]),
        ("two draws from the pooled loads", lags.popularity, PALETTE[2]),
        ("chance, K / E", np.array([lags.chance]), "#888888"),
    ):
        figure.add_scatter(
            x=[x[0], x[-1]], y=[np.nanmean(values)] * 2, mode="lines", name=name,
            line={"color": color, "dash": "dash", "width": 2}, hovertemplate="%{y:.1%}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE, title=f"Experts shared with the token some places before, {label(lags)}",
        xaxis={"title": "lag, tokens", "type": "log", "tickvals": x, "ticktext": [str(v) for v in x]},
        yaxis={"title": "part of the token's experts", "tickformat": ".0%", "rangemode": "tozero"},
        legend={"orientation": "v", "x": 1.02, "y": 1},
    )  # fmt: skip
    return figure
