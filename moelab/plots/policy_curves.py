"""Policy curves: misses, or reads, of every policy of a sweep over the capacity, with the bands of the oracles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import plotly.graph_objects as go

from moelab.plots.template import PALETTE, TEMPLATE, label
from moelab.sweeps.result import SweepResult

if TYPE_CHECKING:
    import pandas as pd

_DASHES = ("solid", "dash", "dot", "dashdot")
_BANDS = {
    "min_bypass": ("below MIN with bypass: only by prefetching", "#c9c9c9"),
    "min_demand": ("below MIN on demand: only by bypassing", "#e9e9e9"),
}


def policy_curves(result: SweepResult, of: Literal["misses", "reads"] = "misses") -> go.Figure:
    """Misses as part of the distinct uses, or reads per layer-step (misses + uploads + prefetches), by slots.

    Grey, of misses only: what no policy of a class can reach (reads are not what these oracles minimise). A vertical
    line marks top-k, or with one pool for all layers the cliff at the L x K experts of one token: with (L - 1) x K
    slots or fewer a global LRU hits nothing at one token a step, because the other layers come in between.
    """
    frame = result.to_frame()
    frame["uses_per_layer_step"] = (frame.distinct_hits + frame.distinct_misses) / frame.layer_steps
    frame["y"] = 1 - frame.hit_rate_per_request if of == "misses" else frame.reads_per_layer_step
    figure = go.Figure()
    floor = None
    for name, (text, colour) in _BANDS.items() if of == "misses" else ():
        line = frame[frame.policy == name].sort_values("slots")
        if len(line):
            figure.add_scatter(
                x=line.slots, y=line.y, mode="lines", name=text, line={"color": colour, "width": 1}, fillcolor=colour,
                fill="tozeroy" if floor is None else "tonexty", hovertemplate=_hover(of, name),
            )  # fmt: skip
            floor = name
    for place, name in enumerate(n for n in frame.policy.unique() if of == "reads" or n not in _BANDS):
        line = frame[frame.policy == name].sort_values("slots")
        oracle = line.is_oracle.iloc[0]
        style = {"color": "#888888", "dash": "dot", "width": 2} if oracle else {
            "color": PALETTE[place % len(PALETTE)], "dash": _DASHES[place // len(PALETTE) % len(_DASHES)], "width": 2,
        }  # fmt: skip
        figure.add_scatter(
            x=line.slots, y=line.y, mode="lines+markers", marker={"size": 5}, line=style,
            hovertemplate=_hover(of, name), name=name + (" (oracle of misses)" if oracle else "") + _note(line),
        )  # fmt: skip
    if of == "reads":
        figure.add_hline(
            y=frame.uses_per_layer_step.max(), line={"color": "#000000", "dash": "dash", "width": 1},
            annotation_text="no fast tier", annotation_position="top right",
        )  # fmt: skip
    _mark_cliff(figure, result)
    first = result.rows[0]
    where = "slots per layer" if first["scope"] == "layer" else "slots of all layers together"
    axis = (
        {"title": "miss ratio per request", "tickformat": ".0%", "range": [0, 1.02]}
        if of == "misses"
        else {"title": "reads per layer-step", "rangemode": "tozero"}
    )
    title = "What is missed" if of == "misses" else "What is read: misses + uploads + prefetches"
    figure.update_layout(
        template=TEMPLATE, title=f"{title}, {label(result)}, {result.phase or 'all'} steps", yaxis=axis,
        xaxis={"title": f"{where} (of {_most(result):,} experts)"}, height=480,
        legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "traceorder": "normal"}, margin={"r": 300},
    )  # fmt: skip
    return figure


def _mark_cliff(figure: go.Figure, result: SweepResult) -> None:
    first = result.rows[0]
    cliff, text = first["top_k"], "top-k"
    if first["scope"] == "global":
        cliff, text = cliff * first["num_layers"], f"cliff: L x K = {cliff * first['num_layers']:,}"
    figure.add_vline(
        x=cliff, line={"color": PALETTE[1], "dash": "dash", "width": 1}, annotation_text=text,
        annotation_position="top right",
    )  # fmt: skip


def _most(result: SweepResult) -> int:
    first = result.rows[0]
    return first["num_experts"] * (first["num_layers"] if first["scope"] == "global" else 1)


def _note(line: pd.DataFrame) -> str:
    return " (in sample)" if "in sample" in line.scored_on.iloc[0] else ""


def _hover(of: str, name: str) -> str:
    value = "%{y:.1%} missed" if of == "misses" else "%{y:.2f} reads"
    return f"{name}, %{{x}} slots: {value}<extra></extra>"
