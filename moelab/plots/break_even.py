"""Break-even: what a month costs on an API and on a machine, over its tokens."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from moelab.plots.template import PALETTE, TEMPLATE
from moelab.sizing import CostComparison

_POINTS = 400  # the steps of one more machine are seen


def break_even(comparison: CostComparison) -> go.Figure:
    """Both axes logarithmic. Vertical lines: break-even, and what one machine makes when it never rests."""
    rough = comparison.curve()
    ends = rough.tokens_per_month.min(), rough.tokens_per_month.max()
    curve = comparison.curve(np.geomspace(*ends, _POINTS).tolist())
    currency = comparison.prices.currency
    figure = go.Figure()
    for column, name, colour, shape in (
        ("api_per_month", f"API, prices of {comparison.prices.date}", PALETTE[1], "linear"),
        ("machine_per_month", f"machines, prices of {comparison.machine.date}", PALETTE[0], "vh"),
    ):
        figure.add_scatter(
            x=curve.tokens_per_month, y=curve[column], mode="lines", name=name,
            line={"color": colour, "width": 3, "shape": shape},
            hovertemplate=f"%{{x:.3s}} tokens: %{{y:,.0f}} {currency}<extra></extra>",
        )  # fmt: skip
    even, capacity = comparison.break_even_tokens_per_month, comparison.capacity_per_month
    cost = "the API costs what one machine does"
    for place, text, height in ((even, cost, 0.02), (capacity, "one machine, never idle", 0.12)):
        if place is not None and place < float("inf"):
            figure.add_vline(x=place, line={"color": "#888888", "dash": "dash"})
            # On a logarithmic axis an annotation's place is the exponent; `add_vline` puts its own off the picture.
            figure.add_annotation(
                x=np.log10(place), y=height, yref="paper", text=text, showarrow=False, bgcolor="white"
            )
    traffic = comparison.traffic
    figure.update_layout(
        template=TEMPLATE,
        title=f"{comparison.tok_per_s:.3g} tok/s, {traffic.input_share:.0%} of the tokens input, "
        f"{traffic.cached_share:.0%} of it cached",
        xaxis={"title": "tokens a month", "type": "log"}, yaxis={"title": f"{currency} a month", "type": "log"},
    )  # fmt: skip
    return figure
