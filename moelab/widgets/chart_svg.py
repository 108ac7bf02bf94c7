"""chart_svg: a chart as SVG text, which is the live picture and the saved notebook's alike.  Floor 6.

Drawn once, here: the browser shows the text and adds a cursor. Axes and writing take the colour of the text around, so
that both themes fit; black of the palette does too. Does not know where a chart comes from (``chart``).
"""

from __future__ import annotations

import math
import re
from html import escape
from typing import Any

import numpy as np

from moelab.widgets.chart import Chart

WIDTH, HEIGHT = 720, 360
LEFT, TOP, RIGHT, BOTTOM = 64, 14, 14, 44
"""Of the picture, and around the plot, in units of its viewBox."""

_DASHES = {"dash": "8 5", "dot": "2 4", "dashdot": "8 4 2 4"}
_INK = {"#000000", "#000", "black"}


def places(axis: dict[str, Any], values: Any, begin: float, end: float) -> np.ndarray:
    """Values on an axis to units of the picture; what has no place (0 on a logarithmic axis) is NaN."""
    values = np.array([math.nan if v is None else v for v in values], float)
    low, high = axis["low"], axis["high"]
    if axis["log"]:
        values = np.log10(np.where(values > 0, values, np.nan))
        low, high = math.log10(low), math.log10(high)
    return begin + (values - low) / (high - low) * (end - begin)


def ticks(axis: dict[str, Any], most: int = 7) -> list[float]:
    """Round places on an axis, rising."""
    low, high = axis["low"], axis["high"]
    if axis["log"]:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last - first < 1:  # not two powers of ten: 1, 2, 5 of the decades, or as on a plain axis
            some = [n * 10.0**power for power in range(first - 1, last + 2) for n in (1, 2, 5)]
            inside = [each for each in some if low * (1 - 1e-9) <= each <= high * (1 + 1e-9)]
            return inside if len(inside) > 1 else ticks({**axis, "log": False}, most)
        every = max(1, math.ceil((last - first + 1) / most))
        return [10.0**power for power in range(first, last + 1, every)]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= raw)
    return [each * step for each in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_text(axis: dict[str, Any], value: float) -> str:
    """A tick's number: percent, powers with a prefix, or plainly."""
    if axis["percent"]:
        return f"{100 * value:.3g}%"
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if name == 'k' else size):.4g}{name}"
    return f"{value:.4g}"


def chart_svg(chart: Chart) -> str:
    """The picture; series ``n`` is the element with ``data-series=n``."""
    x, y = chart["x"], chart["y"]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in ticks(x):
        at = float(places(x, [value], LEFT, right)[0])
        parts.append(_line(at, TOP, at, bottom, "moelab-grid") + _text(at, bottom + 15, tick_text(x, value), "middle"))
    for value in ticks(y):
        at = float(places(y, [value], bottom, TOP)[0])
        parts.append(_line(LEFT, at, right, at, "moelab-grid") + _text(LEFT - 6, at + 4, tick_text(y, value), "end"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, x["label"], "middle"))
    turned = f"transform='rotate(-90 14 {(TOP + bottom) / 2:.1f})'"
    parts.append(_text(14, (TOP + bottom) / 2, y["label"], "middle", turned))
    inner = []
    before = None
    for number, one in enumerate(chart["series"]):
        across, down = places(x, one["x"], LEFT, right), places(y, one["y"], bottom, TOP)
        inner.append(_series(number, one, across, down, before, bottom))
        before = (across, down)
    for line in chart["lines"]:
        if "x" in line:
            at = float(places(x, [line["x"]], LEFT, right)[0])
            if LEFT - 1 <= at <= right + 1:
                place = _text(at + 4, TOP + 12, line["text"], "start")
                inner.append(_line(at, TOP, at, bottom, "moelab-mark", line["colour"]) + place)
        else:
            at = float(places(y, [line["y"]], bottom, TOP)[0])
            place = _text(right - 4, at - 4, line["text"], "end")
            inner.append(_line(LEFT, at, right, at, "moelab-mark", line["colour"]) + place)
    clip = f"<clipPath id='moelab-plot'><rect x='{LEFT}' y='{TOP}' width='{right - LEFT}' height='{bottom - TOP}'/>"
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(chart['title'], quote=True)}' "
        f"style='width:100%;max-width:{WIDTH}px;font:11px system-ui,sans-serif' fill='currentColor'>"
        f"<style>.moelab-grid{{stroke:currentColor;opacity:.15}}.moelab-mark{{stroke-dasharray:5 4}}</style>{clip}"
        f"</clipPath>{''.join(parts)}<g clip-path='url(#moelab-plot)'>{''.join(inner)}</g></svg>"
    )


def legend_html(chart: Chart) -> str:
    """Names and colours of the series that have one."""
    keys = [
        f"<span style='white-space:nowrap'><svg width='22' height='8'>{_stroke_of(one)}</svg> {escape(one['name'])}"
        "</span>"
        for one in chart["series"]
        if one["name"] and one["shown"]
    ]
    return f"<div style='display:flex;flex-wrap:wrap;gap:2px 14px'>{''.join(keys)}</div>"


def _stroke_of(one: dict[str, Any]) -> str:
    if one["fill"]:
        return f"<rect width='22' height='8' {_filled(one['colour'])}/>"
    if not one["width"]:
        return f"<circle cx='11' cy='4' r='3.5' fill='{_colour(one['colour'])}'/>"
    dash = _DASHES.get(one["dash"], "")
    return f"<path d='M0 4H22' stroke='{_colour(one['colour'])}' stroke-width='2' stroke-dasharray='{dash}'/>"


def _series(number: int, one: dict[str, Any], across: np.ndarray, down: np.ndarray, before: Any, bottom: float) -> str:
    out = ""
    if one["fill"]:
        back = (
            (across[::-1], np.full(len(across), bottom))
            if one["fill"] == "zero"
            else (before[0][::-1], before[1][::-1])
        )
        edge = [*zip(across, down, strict=True), *zip(*back, strict=True)]
        out += f"<path d='{_path(edge)}Z' {_filled(one['colour'])} stroke='none'/>"
    if one["width"]:
        dash = _DASHES.get(one["dash"], "")
        out += (
            f"<path d='{_path(zip(across, down, strict=True))}' fill='none' stroke='{_colour(one['colour'])}' "
            f"stroke-width='{one['width']}' stroke-dasharray='{dash}'/>"
        )
    if one["marks"]:
        dots = [(a, d) for a, d in zip(across, down, strict=True) if np.isfinite(a) and np.isfinite(d)]
        out += "".join(f"<circle cx='{a:.2f}' cy='{d:.2f}' r='3' fill='{_colour(one['colour'])}'/>" for a, d in dots)
    return f"<g data-series='{number}'>{out}</g>"


def _path(points: Any) -> str:
    """``M x y L x y``; a point without a place interrupts the line."""
    out, pen = [], "M"
    for across, down in points:
        if not (np.isfinite(across) and np.isfinite(down)):
            pen = "M"
            continue
        out.append(f"{pen}{across:.2f} {down:.2f}")
        pen = "L"
    return "".join(out)


def _line(x1: float, y1: float, x2: float, y2: float, name: str, colour: str | None = None) -> str:
    stroke = f" stroke='{_colour(colour)}'" if colour else ""
    return f"<line class='{name}' x1='{x1:.2f}' y1='{y1:.2f}' x2='{x2:.2f}' y2='{y2:.2f}'{stroke}/>"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {more}>{escape(text)}</text>" if text else ""


def _filled(colour: str) -> str:
    """Of an area: a grey is the ink at the strength that it has on white, so that it pales on a dark ground too."""
    if re.fullmatch(r"#([0-9a-fA-F]{2})\1\1", colour):
        return f"fill='currentColor' fill-opacity='{1.2 * (1 - int(colour[1:3], 16) / 255):.2f}'"
    return f"fill='{_colour(colour)}'"


def _colour(colour: str | None) -> str:
    return "currentColor" if colour is None or colour.lower() in _INK else escape(colour, quote=True)
