"""The one look of all pictures: a registered plotly template ``moelab`` and its palette."""

from __future__ import annotations

from typing import Protocol

import plotly.graph_objects as go
import plotly.io as pio

from moelab.palette import PALETTE

TEMPLATE = go.layout.Template(
    layout={
        "colorway": PALETTE,
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {"showgrid": True, "gridcolor": "#e6e6e6", "zeroline": False, "ticks": "outside"},
        "yaxis": {"showgrid": True, "gridcolor": "#e6e6e6", "zeroline": False, "ticks": "outside"},
        "legend": {"orientation": "h", "y": -0.22},
        "margin": {"l": 70, "r": 20, "t": 60, "b": 70},
        "colorscale": {"sequential": "Viridis"},
    }
)
pio.templates["moelab"] = TEMPLATE


class OfModel(Protocol):
    """A result that knows what it was computed from."""

    @property
    def model(self) -> str: ...
    @property
    def synthetic(self) -> bool: ...


def label(result: OfModel) -> str:
    """Model, and in every title whether the routing is synthetic."""
    return f"{result.model}, SYNTHETIC routing" if result.synthetic else result.model
