"""chart: the lines of a plotly figure of ``moelab.plots`` as plain values, for a widget that draws them.  Floor 6.

A FigureWidget would put five megabytes of JavaScript into the notebook. The figure stays the plain twin: a chart has
its numbers, names, colours and axes and nothing more. Does not draw (``chart_svg``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

Chart = dict[str, Any]
"""``title``; ``x`` and ``y``: ``{"label", "log", "low", "high", "percent"}``; ``series``: ``{"name", "x", "y",
"colour", "dash", "width", "marks", "fill", "shown"}`` (``fill``: ``zero``, ``before`` or empty); ``lines``:
``{"x" or "y", "colour", "text"}`` right across."""


def chart_of(figure: go.Figure) -> Chart:
    """The chart of a figure of scatter traces; ValueError for a trace of another kind."""
    series = []
    for trace in figure.data:
        if trace.type != "scatter":
            raise ValueError(f"trace {trace.name} is a {trace.type}, expected scatter: a chart holds lines and points")
        x, y = (np.asarray(values, float).tolist() for values in (trace.x, trace.y))
        mode = trace.mode or "lines"
        line, marker = trace.line, trace.marker
        width = line.width if line.width is not None else 2
        series.append(
            {
                "name": trace.name or "", "x": x, "y": [None if math.isnan(v) else v for v in y],
                "colour": trace.fillcolor or line.color or marker.color or "#888888", "dash": line.dash or "solid",
                "width": width if "lines" in mode else 0, "marks": "markers" in mode,
                "fill": {"tozeroy": "zero", "tonexty": "before"}.get(trace.fill or "", ""),
                "shown": trace.showlegend is not False,
            }
        )  # fmt: skip
    layout = figure.layout
    lines = []
    for shape in layout.shapes:
        across = {"x": shape.x0} if shape.x0 == shape.x1 else {"y": shape.y0}
        ((which, place),) = across.items()
        lines.append({**across, "colour": shape.line.color, "text": _note_at(layout, which, place)})
    return {
        "title": layout.title.text or "",
        "x": _axis(layout.xaxis, series, "x"),
        "y": _axis(layout.yaxis, series, "y"),
        "series": series,
        "lines": lines,
    }


def _note_at(layout: Any, which: str, place: float) -> str:
    """Text of the annotation that stands at a line; on a logarithmic axis plotly places texts by their exponent."""
    if layout[f"{which}axis"].type == "log":
        place = math.log10(place)
    for note in layout.annotations:
        at = getattr(note, which)
        if note.text and isinstance(at, int | float) and math.isclose(at, place, abs_tol=1e-9):
            return str(note.text)
    return ""


def _axis(axis: Any, series: list[dict[str, Any]], which: str) -> dict[str, Any]:
    is_log = axis.type == "log"
    values = [v for one in series for v in one[which] if v is not None and (v > 0 or not is_log)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if axis.range:
        low, high = (10.0**end for end in axis.range) if is_log else axis.range
    elif axis.rangemode == "tozero":
        low = min(0.0, low)
    if high <= low:
        low, high = (low / 2, low * 2 or 1.0) if is_log else (low - 0.5, low + 0.5)
    percent = str(axis.tickformat or "").endswith("%")
    return {"label": axis.title.text or "", "log": is_log, "low": float(low), "high": float(high), "percent": percent}
