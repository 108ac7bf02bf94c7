"""Replay times: the prediction beside the measurement, for each row of a replay."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moelab.execution.result import ReplayResult
from moelab.plots.template import PALETTE, TEMPLATE


def replay_times(result: ReplayResult) -> go.Figure:
    """One panel for each row (their scales differ): ms/token predicted, rescaled and measured."""
    titles = []
    for row in result.rows:
        name = "own weights" if row.name == "own" else f"{row.expert_shape} shape"
        limit = "" if row.percent_of_read_limit is None else f": {row.percent_of_read_limit:.0f}% of the read limit"
        titles.append(name + limit)
    figure = make_subplots(rows=1, cols=len(result.rows), subplot_titles=titles, horizontal_spacing=0.12)
    for column, row in enumerate(result.rows, start=1):
        low, high = row.measured_ms_per_token_range
        measured = row.measured_ms_per_token
        figure.add_bar(
            row=1, col=column, showlegend=False, marker_color=(PALETTE[4], PALETTE[0], PALETTE[1]),
            x=["predicted,<br>stored before", "predicted,<br>this run's limit", "measured"],
            y=[row.predicted_ms_per_token_stored, row.predicted_ms_per_token, measured],
            error_y={
                "type": "data", "symmetric": False, "array": [0, 0, max(0, high - measured)],
                "arrayminus": [0, 0, max(0, measured - low)],
            },
            hovertemplate="%{x}: %{y:.3f} ms/token<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(title_text="ms/token, routed experts", rangemode="tozero", col=1)
    figure.update_layout(
        template=TEMPLATE, title="Routed experts: prediction beside measurement (bars: quartiles)", margin={"t": 90}
    )
    return figure
