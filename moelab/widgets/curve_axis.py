"""curve_axis: the sizes of a curve's x axis as slots per layer, slots of all layers, or GB.  Floor 6.

The twin of a place on the axis is ``moelab.exploration.fast_tier_size``. Does not know curves.
"""

from __future__ import annotations

from moelab.domain.trace import TraceHeader
from moelab.domain.units import GB
from moelab.exploration import fast_tier_size
from moelab.widgets.chart import Chart

AXES = ("slots per layer", "slots", "GB")


def axes_of(header: TraceHeader) -> list[str]:
    """Those of ``AXES`` that the trace allows: bytes must be known."""
    return [name for name in AXES if name != "GB" or fast_tier_size(header, 1).num_bytes is not None]


def per_slot(header: TraceHeader, axis: str) -> float:
    """What one slot in each layer is on the axis."""
    size = fast_tier_size(header, 1)
    if axis == "GB":
        if size.num_bytes is None:
            raise ValueError("the trace does not say the bytes of an expert, so sizes have no GB: take slots")
        return size.num_bytes / GB
    return size.slots if axis == "slots" else 1.0


def on_axis(chart: Chart, header: TraceHeader, axis: str) -> Chart:
    """``chart`` over slots per layer, with ``axis`` of ``AXES`` in their place.

    ``chart["x"]["per_slot"]``, the factor, leads back. ValueError for GB where bytes are not known.
    """
    factor, num_experts = per_slot(header, axis), header.num_layers * header.num_experts
    if axis == AXES[0]:
        return {**chart, "x": {**chart["x"], "per_slot": factor}}
    labels = {
        "slots": f"slots of all {header.num_layers} layers together (of {num_experts:,} experts)",
        "GB": "GB of the fast tier, all layers together",
    }
    x = chart["x"]
    return {
        **chart,
        "x": {**x, "low": x["low"] * factor, "high": x["high"] * factor, "label": labels[axis], "per_slot": factor},
        "series": [{**one, "x": [value * factor for value in one["x"]]} for one in chart["series"]],
        "lines": [{**line, "x": line["x"] * factor} if "x" in line else line for line in chart["lines"]],
    }
