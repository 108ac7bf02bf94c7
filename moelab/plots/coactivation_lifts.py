"""Co-activation: the heat map of one layer's lifts, and the top pairs of all layers with their intervals."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moelab.analysis.coactivation import Coactivation
from moelab.plots.template import PALETTE, TEMPLATE, label


def coactivation_lifts(pairs: Coactivation, layer: int | None = None) -> go.Figure:
    """Left: shrunk lift of all pairs of ``layer`` (default: that of the first top pair), on a logarithmic scale.

    Right: plain lift of the top pairs, interval over requests where there is one.
    """
    if layer is None:
        layer = int(pairs.top[0, 0]) if len(pairs.top) else 0
    figure = make_subplots(
        rows=1, cols=2, column_widths=[0.52, 0.48], horizontal_spacing=0.26,
        subplot_titles=(f"layer {layer}: shrunk lift", "pairs with the largest excess"),
    )  # fmt: skip
    lift = pairs.shrunk_lift()[layer]
    if not pairs.is_whole:
        lift = np.where(pairs.counts[layer] > 0, lift, np.nan)
    order = _by_neighbour(lift)
    shown = np.log2(np.clip(lift[np.ix_(order, order)], 2**-4, 2**4))
    figure.add_heatmap(
        z=shown, zmid=0, zmin=-4, zmax=4, colorscale="RdBu_r", row=1, col=1, customdata=lift[np.ix_(order, order)],
        x=[str(e) for e in order], y=[str(e) for e in order],
        colorbar={
            "title": "lift", "tickvals": [-4, -2, 0, 2, 4], "ticktext": ["1/16", "1/4", "1", "4", "16"], "x": 0.4,
            "len": 0.9, "thickness": 14,
        },
        hovertemplate="experts %{x} and %{y}: %{customdata:.2f} times independence<extra></extra>",
    )  # fmt: skip
    frame = pairs.to_frame().iloc[::-1]
    names = [f"L{r.layer}: {r.expert_a}, {r.expert_b}" for r in frame.itertuples()]
    has_interval = np.isfinite(frame.low.to_numpy()).any()
    error = {
        "type": "data", "symmetric": False, "array": (frame.high - frame.lift).clip(lower=0),
        "arrayminus": (frame.lift - frame.low).clip(lower=0),
    } if has_interval else None  # fmt: skip
    figure.add_scatter(
        x=frame.lift, y=names, mode="markers", marker={"color": PALETTE[0], "size": 8}, error_x=error, showlegend=False,
        customdata=frame.tokens, row=1, col=2,
        hovertemplate="%{y}: lift %{x:.2f}, %{customdata:,} tokens<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=1, line={"color": "#888888", "dash": "dot"}, row=1, col=2)
    figure.update_xaxes(title_text="expert", showticklabels=False, showgrid=False, type="category", row=1, col=1)
    figure.update_yaxes(title_text="expert", showticklabels=False, showgrid=False, type="category", row=1, col=1)
    figure.update_xaxes(title_text="lift (1: independent)", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(tickfont={"size": 10}, row=1, col=2)
    figure.update_layout(
        template=TEMPLATE, title=f"Experts of one layer that serve the same tokens, {label(pairs)}", height=520,
        margin={"t": 90},
    )  # fmt: skip
    return figure


def _by_neighbour(lift: np.ndarray) -> list[int]:
    """Experts in an order that puts those that fire together side by side: greedy, from the strongest pair on."""
    strength = np.nan_to_num(lift, nan=0.0)
    left = set(range(len(strength)))
    current = int(strength.max(1).argmax())
    order = [current]
    left.remove(current)
    while left:
        rest = sorted(left)
        current = rest[int(strength[current, rest].argmax())]
        order.append(current)
        left.remove(current)
    return order
