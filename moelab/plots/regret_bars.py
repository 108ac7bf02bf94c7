"""Regret bars: misses of each policy above those of the oracle of its class, a panel for each capacity."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moelab.plots.template import PALETTE, TEMPLATE, label
from moelab.sweeps.result import SweepResult

_COLOUR = {"min_demand": PALETTE[0], "min_bypass": PALETTE[2]}
_CLASS = {"min_demand": "above MIN on demand", "min_bypass": "above MIN with bypass"}


def regret_bars(result: SweepResult) -> go.Figure:
    """Policies in order of their misses; policies that prefetch have no bound and no bar.

    Raises ``ValueError`` where the sweep lacks an oracle.
    """
    regret = result.regret().dropna(subset="oracle")
    slots = sorted(regret.slots.unique())
    shares = [regret.share_of_experts[regret.slots == each].iloc[0] for each in slots]
    figure = make_subplots(
        rows=1, cols=len(slots), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[f"{each} slots<br>{share:.0%}" for each, share in zip(slots, shares, strict=True)],
    )  # fmt: skip
    order = regret.groupby("policy").misses_per_layer_step.mean().sort_values(ascending=False).index
    for column, each in enumerate(slots, start=1):
        for oracle, colour in _COLOUR.items():
            rows = regret[(regret.slots == each) & (regret.oracle == oracle)]
            figure.add_bar(
                row=1, col=column, orientation="h", y=rows.policy, x=rows.regret, marker_color=colour,
                name=_CLASS[oracle], legendgroup=oracle, showlegend=column == 1 and len(rows) > 0,
                customdata=rows[["misses_per_layer_step", "oracle_misses_per_layer_step"]],
                hovertemplate="%{y}: %{customdata[0]:.2f} misses, oracle %{customdata[1]:.2f}<extra></extra>",
            )  # fmt: skip
    figure.update_yaxes(categoryorder="array", categoryarray=list(order), showgrid=False)
    figure.update_xaxes(rangemode="tozero", nticks=4, tickangle=0)
    figure.update_xaxes(title_text="misses per layer-step above the oracle", row=1, col=(len(slots) + 1) // 2)
    height = max(150, 20 * len(order))  # of the bars, pixels
    figure.update_layout(
        template=TEMPLATE, barmode="overlay", height=height + 220, margin={"t": 110, "b": 110, "l": 150},
        title=f"Regret of each policy, {label(result)}, {result.phase or 'all'} steps",
        legend={"orientation": "h", "y": -65 / height, "yanchor": "top"},
    )  # fmt: skip
    return figure
