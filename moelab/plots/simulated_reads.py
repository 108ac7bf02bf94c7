"""Simulated reads: what each layer reads in a layer-step of one simulation: misses, uploads, prefetches."""

from __future__ import annotations

import plotly.graph_objects as go

from moelab.plots.template import PALETTE, TEMPLATE, label
from moelab.simulator.result import SimResult

_PARTS = (("distinct_misses", "misses, read at home"), ("uploads", "uploads"), ("prefetches", "prefetches"))


def simulated_reads(result: SimResult) -> go.Figure:
    """Stacked bars by layer; the markers are all distinct uses, what would be read without a fast tier.

    Where a layer's bar passes its marker, the fast tier costs more reads than it saves. Prefetches stand at the layer
    that asked for them.
    """
    frame = result.to_frame().groupby("layer").sum(numeric_only=True)
    figure = go.Figure()
    for (column, name), colour in zip(_PARTS, PALETTE, strict=False):
        if frame[column].any() or column == "distinct_misses":
            figure.add_bar(
                x=frame.index, y=frame[column] / frame.layer_steps, name=name, marker_color=colour,
                hovertemplate="layer %{x}: %{y:.2f} " + name + "<extra></extra>",
            )  # fmt: skip
    figure.add_scatter(
        x=frame.index, y=(frame.distinct_hits + frame.distinct_misses) / frame.layer_steps, mode="markers",
        name="distinct experts used", marker={"symbol": "line-ew", "size": 16, "line": {"color": "#000", "width": 2}},
        hovertemplate="layer %{x}: %{y:.2f} experts used<extra></extra>",
    )  # fmt: skip
    hits = "" if result.hit_rate_per_request is None else f", hit rate per request {result.hit_rate_per_request:.1%}"
    figure.update_layout(
        template=TEMPLATE, barmode="stack", xaxis_title="MoE layer",
        title=f"Reads of a layer-step, {label(result)}, {result.policy}, {result.phase or 'all'} steps{hits}",
        yaxis={"title": "reads per layer-step", "rangemode": "tozero"},
    )  # fmt: skip
    return figure
