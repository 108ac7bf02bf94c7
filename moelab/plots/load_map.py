"""Load map: how often each expert of each layer was routed to, and which ones a plan holds in the fast tier."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moelab.domain.counts import CountsTable
from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.plots.template import TEMPLATE


def load_map(trace: Trace | CountsTable, plan: Plan | None = None) -> go.Figure:
    """Heat map layer x expert of the load over the layer's mean; experts sorted by load within each layer.

    With a ``plan``, a dot marks the experts that it places on ``fast0``.
    """
    about = trace if isinstance(trace, CountsTable) else trace.header
    loads = (trace.loads if isinstance(trace, CountsTable) else trace.loads()).astype(float)
    mean = loads.mean(axis=1, keepdims=True)
    relative = np.divide(loads, mean, out=np.zeros_like(loads), where=mean > 0)
    order = np.argsort(-relative, axis=1, kind="stable")
    ranked = np.take_along_axis(relative, order, axis=1)
    layers = [str(n) for n in about.model_layer_of_layer]
    figure = go.Figure(
        go.Heatmap(
            z=ranked, y=layers, colorscale="Viridis", zmin=0, customdata=order,
            colorbar={"title": "load /<br>mean load"},
            hovertemplate="layer %{y}, expert %{customdata}: %{z:.2f} x the mean<extra></extra>",
        )
    )  # fmt: skip
    if plan is not None and "fast0" in plan.tiers:
        layer, rank = np.nonzero(np.take_along_axis(plan.resident("fast0"), order, axis=1))
        figure.add_scatter(
            x=rank, y=[layers[i] for i in layer], mode="markers", name="in the fast tier by plan",
            marker={"color": "white", "size": 5, "line": {"color": "black", "width": 1}}, hoverinfo="skip",
        )  # fmt: skip
    synthetic = ", SYNTHETIC routing" if about.synthetic else ""
    figure.update_layout(
        template=TEMPLATE, title=f"Load of each expert, {about.model}{synthetic} ({trace.num_tokens:,} tokens)",
        xaxis_title="expert, hottest first in each layer", yaxis_title="model layer",
        yaxis={"type": "category", "showgrid": False}, showlegend=plan is not None,
    )  # fmt: skip
    return figure
