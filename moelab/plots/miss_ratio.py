"""Miss-ratio curve: what an LRU fast tier of any size would miss, with the plan's own size marked."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moelab.analysis.miss_ratio_curve import MissRatioCurve
from moelab.plots.template import PALETTE, TEMPLATE, label


def miss_ratio(curve: MissRatioCurve, slots: float | None = None, top_k: int | None = None) -> go.Figure:
    """Miss ratio per request over slots per layer: all layers, and a thin line for each."""
    figure = go.Figure()
    capacities = np.arange(curve.hits_per_request.shape[1])
    by_layer = 1 - curve.hits_per_request / curve.uses_per_request[:, None].clip(1)
    for layer in by_layer:
        figure.add_scatter(
            x=capacities, y=layer, mode="lines", showlegend=False, hoverinfo="skip",
            line={"color": "#bbbbbb", "width": 1},
        )  # fmt: skip
    figure.add_scatter(
        x=capacities, y=curve.miss_ratio_per_request(), mode="lines", name="LRU, all layers",
        line={"color": PALETTE[0], "width": 3}, hovertemplate="%{x} slots: %{y:.1%} missed<extra></extra>",
    )  # fmt: skip
    if top_k is not None:
        figure.add_vline(x=top_k, line={"color": PALETTE[6], "dash": "dot"}, annotation_text="top-k")
    if slots is not None:
        figure.add_vline(x=slots, line={"color": PALETTE[1], "dash": "dash"}, annotation_text="slots of the plan")
    figure.update_layout(
        template=TEMPLATE, title=f"Misses of an LRU fast tier of any size, hits per request, {label(curve)}",
        xaxis_title="slots per layer", yaxis_title="miss ratio", yaxis={"tickformat": ".0%", "rangemode": "tozero"},
    )  # fmt: skip
    return figure
