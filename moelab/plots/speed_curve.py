"""Speed curve: predicted rate of a model over bandwidth with its interval, the ceiling, and the published points."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moelab.plots.template import PALETTE, TEMPLATE
from moelab.sizing import Sizing, speed_fit

_WIDEST = 2000.0  # GB/s, beyond two sockets of MRDIMM-8800


def speed_curve(sizing: Sizing) -> go.Figure:
    """Rates at batch 1 over the bandwidth of the node's memory. Raises ``ValueError`` where nothing is predicted, and
    for more streams than one, of which nobody published a curve.

    Points are what was published, of models and formats that differ; beside each, in hover, what a fit without it says.
    """
    if sizing.prediction is None:
        raise ValueError(
            f"{sizing.machine.name}: no prediction to draw; {'; '.join(sizing.places.lacks) or 'all on GPUs'}"
        )
    if sizing.batch > 1:
        raise ValueError(f"batch is {sizing.batch}, expected 1: the curve and its points are of one stream")
    fit = speed_fit(sizing.prediction.mode)
    held = f"holds a new point with {fit.coverage:.0%}" if sizing.prediction.coverage else "of points of another kind"
    layers = sizing.spec.num_hidden_layers
    num_bytes = sizing.reads.home_bytes * sizing.imbalance
    if sizing.places.mode == "cpu":
        num_bytes += sizing.reads.always_bytes
    rates = np.geomspace(40, _WIDEST, 120)
    predicted = np.array([1 / fit.token_s(num_bytes, rate, layers) for rate in rates])
    ceiling = rates * 1e9 / num_bytes
    low, high = (np.minimum(predicted * bound, ceiling) for bound in (fit.ratios.min(), fit.ratios.max()))
    figure = go.Figure()
    figure.add_scatter(x=rates, y=ceiling, mode="lines", name="ceiling: bandwidth over bytes", hoverinfo="skip",
                       line={"color": "#888888", "dash": "dash", "width": 2})  # fmt: skip
    figure.add_scatter(x=rates, y=low, mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=rates, y=high, mode="lines", line={"width": 0}, fill="tonexty", fillcolor="rgba(0,114,178,0.18)",
        name=f"interval, {held}", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=rates, y=np.minimum(predicted, ceiling), mode="lines", line={"color": PALETTE[0], "width": 3},
        name=f"predicted for {sizing.spec.name}, {sizing.recipe.name}",
        hovertemplate="%{x:.0f} GB/s: %{y:.1f} tok/s<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[point.bandwidth_gb_per_s for point in fit.points], y=[point.tok_per_s for point in fit.points],
        mode="markers", marker={"color": PALETTE[1], "size": 9}, name="published, other models and formats too",
        text=[f"{point.model}, {point.weights}<br>{point.hardware}<br>left out: {left_out:.1f} tok/s<br>{point.source}"
              for point, left_out in zip(fit.points, fit.left_out, strict=True)],
        hovertemplate="%{y} tok/s, %{text}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(
        y=1 / fit.fixed_s(layers), line={"color": "#000000", "dash": "dot", "width": 1}, annotation_text="1 / t0",
        annotation_position="top left",
    )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE, title=f"Decode over bandwidth, {fit.mode}: leave-one-out error median "
        f"{fit.median_error:.0%}, mean {fit.mean_error:.0%} on {len(fit.points)} points",
        xaxis={"title": "GB/s of the memory that holds the experts (peak of the channels)", "range": [0, _WIDEST]},
        yaxis={"title": "tok/s, batch 1", "range": [0, 1.6 / fit.fixed_s(layers)]}, height=480,
    )  # fmt: skip
    return figure
