"""Popularity curve: what part of the routings the hottest experts take, pooled and by domain."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moelab.analysis.popularity import Popularity
from moelab.plots.template import PALETTE, TEMPLATE, label


def popularity_curve(popularity: Popularity) -> go.Figure:
    """Lorenz curves from the hottest down: thin lines for the layers, one for each domain (mean over layers)."""
    figure = go.Figure()
    share = np.arange(popularity.loads.shape[2] + 1) / popularity.loads.shape[2]
    curves = _cumulative(popularity.loads)
    for layer in curves[0]:
        figure.add_scatter(
            x=share, y=layer, mode="lines", showlegend=False, hoverinfo="skip", line={"color": "#cccccc", "width": 1}
        )
    for row, name in enumerate(popularity.domains):
        is_all = row == 0
        figure.add_scatter(
            x=share, y=curves[row].mean(0), mode="lines",
            name=f"all {popularity.num_tokens[0]:,} tokens" if is_all else name,
            line={"color": "#000000" if is_all else PALETTE[(row - 1) % 6], "width": 3 if is_all else 1.5},
            hovertemplate="hottest %{x:.0%}: %{y:.1%} of the routings<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="even", line={"color": "#888888", "dash": "dot", "width": 1},
        hoverinfo="skip",
    )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE, title=f"What the hottest experts of a layer take, {label(popularity)}",
        xaxis={"title": "experts of a layer, hottest first", "tickformat": ".0%", "range": [0, 1]},
        yaxis={"title": "part of the routings", "tickformat": ".0%", "range": [0, 1.02]},
        legend={"orientation": "v", "x": 1.02, "y": 1},
    )  # fmt: skip
    return figure


def _cumulative(loads: np.ndarray) -> np.ndarray:
    """float64 [D, L, E + 1] from 0 to 1."""
    falling = np.sort(loads, axis=2)[:, :, ::-1].cumsum(2).astype(float)
    total = falling[:, :, -1:]
    parts = np.divide(falling, total, out=np.full(falling.shape, np.nan), where=total > 0)
    return np.concatenate([np.zeros((*parts.shape[:2], 1)), parts], axis=2)
