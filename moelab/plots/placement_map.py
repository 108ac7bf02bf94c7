"""Placement map: where a plan has each expert of each layer: one node, several, in pieces, or the fast tier."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.plots.template import PALETTE, TEMPLATE

COPIES, PIECES = "copies on several nodes", "in pieces over nodes"


def placement_map(trace: Trace, plan: Plan) -> go.Figure:
    """Heat map layer x expert, one colour for each place; the hottest expert of each layer first, by load in ``trace``.

    An expert on a fast tier has that tier's colour, wherever its home is. Raises ``ValueError`` where the plan is for
    another shape.
    """
    header = trace.header
    shape = (header.num_layers, header.num_experts)
    if (plan.model.num_layers, plan.model.num_experts) != shape:
        raise ValueError(
            f"plan is for {plan.model.name} ({plan.model.num_layers} x {plan.model.num_experts}); the trace is of "
            f"{header.model} ({shape[0]} x {shape[1]}): re-plan, or give the trace that it was made on"
        )
    places, names = place_of_expert(plan)
    order = np.argsort(-trace.loads(), axis=1, kind="stable")
    ranked = np.take_along_axis(places, order, axis=1)
    layers = [str(n) for n in header.model_layer_of_layer]
    figure = go.Figure(
        go.Heatmap(
            z=ranked, y=layers, showscale=False, zmin=-0.5, zmax=len(names) - 0.5, colorscale=_steps(len(names)),
            xgap=1, ygap=1, customdata=np.dstack([order, np.array(names, object)[ranked]]),
            hovertemplate="layer %{y}, expert %{customdata[0]}: %{customdata[1]}<extra></extra>",
        )
    )  # fmt: skip
    for number, name in enumerate(names):  # a heat map has no legend of its own
        count = int((places == number).sum())
        if count:
            figure.add_scatter(
                x=[None], y=[None], mode="markers", name=f"{name} ({count:,})",
                marker={"symbol": "square", "size": 11, "color": PALETTE[number % len(PALETTE)]},
            )  # fmt: skip
    synthetic = ", SYNTHETIC routing" if header.synthetic else ""
    planner = plan.planner.get("name", "unknown")
    figure.update_layout(
        template=TEMPLATE, title=f"Where {planner} has each expert, {header.model}{synthetic}", showlegend=True,
        xaxis_title="expert, hottest first in each layer", yaxis_title="model layer", xaxis_showgrid=False,
        yaxis={"type": "category", "showgrid": False},
    )  # fmt: skip
    return figure


def place_of_expert(plan: Plan) -> tuple[np.ndarray, list[str]]:
    """(index [L, E] into names, names): the plan's tiers, then ``COPIES`` and ``PIECES``."""
    names = [*plan.tiers, COPIES, PIECES]
    columns = plan.placements.arrays()
    places = np.zeros((plan.model.num_layers, plan.model.num_experts), np.int64)
    num_nodes = np.zeros_like(places)
    in_pieces = np.zeros(places.shape, bool)
    is_node = np.array([tier.startswith("node") for tier in plan.tiers])[columns["tier"]]
    at = (columns["layer"], columns["expert"])
    node_at = tuple(each[is_node] for each in at)
    places[node_at] = columns["tier"][is_node]
    np.add.at(num_nodes, node_at, 1)
    in_pieces[node_at] |= (columns["stop"] - columns["start"])[is_node] < plan.num_units
    places[num_nodes > 1] = len(names) - 2
    places[in_pieces] = len(names) - 1
    fast_at = tuple(each[~is_node] for each in at)
    places[fast_at] = columns["tier"][~is_node]
    return places, names


def _steps(num_names: int) -> list[list[object]]:
    """A colour scale without transitions: one colour of the palette for each whole number."""
    steps: list[list[object]] = []
    for number in range(num_names):
        colour = PALETTE[number % len(PALETTE)]
        steps += [[number / num_names, colour], [(number + 1) / num_names, colour]]
    return steps
