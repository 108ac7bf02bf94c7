"""Break-even: what a month costs on an API and on a machine, over its tokens."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from moelab.plots.template import PALETTE, TEMPLATE
from moelab.sizing import CostComparison


def break_even(comparison: CostComparison) -> go.Figure:
    """Both axes logarithmic. Vertical lines: break-even, and what one machine makes when it never rests."""
    curve = comparison.curve()
    currency = comparison.prices.currency
    figure = go.Figure()
    for column, name, colour in (
        ("api_per_month", f"API, prices of {comparison.prices.date}", PALETTE[1]),
        ("machine_per_month", f"machines, prices of {comparison.machine.date}", PALETTE[0]),
    ):
        figure.add_scatter(
            x=curve.tokens_per_month, y=curve[column], mode="lines", name=name, line={"color": colour, "width": 3},
            hovertemplate=f"%{{x:.3s}} tokens: %{{y:,.0f}} {currency}<extra></extra>",
        )  # fmt: skip
    even, capacity = comparison.break_even_tokens_per_month, comparison.capacity_per_month
    for place, text in ((even, "break-even"), (capacity, "one machine, never idle")):
        if place is not None and place < float("inf"):
            figure.add_vline(x=place, line={"color": "#888888", "dash": "dash"})
            # Shapes stand at the value, texts at its exponent: add_vline would put the text far off a logarithmic axis.
            figure.add_annotation(
                x=math.log10(place), y=1, yref="paper", text=text, showarrow=False, xanchor="left", yanchor="top"
            )
    traffic = comparison.traffic
    figure.update_layout(
        template=TEMPLATE,
        title=f"{comparison.tok_per_s:.3g} tok/s, {traffic.input_share:.0%} of the tokens input, "
        f"{traffic.cached_share:.0%} of it cached",
        xaxis={"title": "tokens a month", "type": "log"}, yaxis={"title": f"{currency} a month", "type": "log"},
    )  # fmt: skip
    return figure
