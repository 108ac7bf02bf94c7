"""static_picture: a map as a PNG inside HTML, for where no JavaScript runs.  Floor 6.

One pixel for each expert, which the browser enlarges. Colours as on the canvas (``moelab.palette``). Does not know
what the values mean.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from moelab.palette import PALETTE, rgb_of, viridis

UNKNOWN = (160, 160, 160)
"""Colour of what has no value."""
_STEPS = 250


def map_colours(values: np.ndarray, scale: Mapping[str, Any]) -> np.ndarray:
    """uint8 [L, E, 3]; ``scale`` as in ``ExpertMap.scale``, NaN is ``UNKNOWN``."""
    known = np.isfinite(values)
    if scale["kind"] == "categories":
        colours = np.array([rgb_of(colour) for colour in PALETTE], np.uint8)
        out = colours[np.where(known, values, 0).astype(int) % len(colours)]
    else:
        span = (scale["high"] - scale["low"]) or 1.0
        out = viridis((np.where(known, values, scale["low"]) - scale["low"]) / span)
    out[~known] = UNKNOWN
    return out


def png(colours: np.ndarray) -> bytes:
    """A PNG file of uint8 [height, width, 3] (W3C Portable Network Graphics, third edition).

    Up to 256 colours: one byte a pixel and a palette, else 8 bits a channel.
    """
    height, width, _ = colours.shape
    packed = colours.reshape(-1, 3).astype(np.int64) @ [1 << 16, 1 << 8, 1]
    kinds, index = np.unique(packed, return_inverse=True)
    is_few = len(kinds) <= 256
    body = index.astype(np.uint8) if is_few else colours
    body = body.reshape(height, -1)
    rows = np.zeros((height, 1 + body.shape[1]), np.uint8)  # each row begins with filter 0: none
    rows[:, 1:] = body

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 3 if is_few else 2, 0, 0, 0)
    palette = np.stack([kinds // 65536, kinds // 256 % 256, kinds % 256], axis=1).astype(np.uint8).tobytes()
    parts = [chunk(b"IHDR", header), *([chunk(b"PLTE", palette)] if is_few else [])]
    parts += [chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _coarse(values: np.ndarray, scale: Mapping[str, Any]) -> np.ndarray:
    """Values in ``_STEPS`` steps of the scale, which nobody can tell apart: the picture stays small."""
    if scale["kind"] == "categories":
        return values
    span = (scale["high"] - scale["low"]) or 1.0
    return scale["low"] + np.round(np.clip((values - scale["low"]) / span, 0, 1) * _STEPS) / _STEPS * span


def map_html(values: np.ndarray, scale: Mapping[str, Any], caption: str) -> str:
    """``<figure>`` with the map of ``values`` [L, E], its scale in words, and ``caption``."""
    data = base64.b64encode(png(map_colours(_coarse(values, scale), scale))).decode()
    if scale["kind"] == "categories":
        key = ", ".join(
            f"<span style='color:{PALETTE[n % len(PALETTE)]}'>&#9632;</span> {escape(name)}"
            for n, name in enumerate(scale["names"])
            if name
        )
    else:
        key = f"{escape(scale['label'])}: dark {scale['low']:.4g} to bright {scale['high']:.4g}"
    rows, columns = values.shape
    height = min(420, max(120, 6 * rows))
    return (
        f"<figure style='margin:0'><img alt='{escape(caption, quote=True)}' src='data:image/png;base64,{data}' "
        f"style='width:100%;max-width:900px;height:{height}px;image-rendering:pixelated'>"
        f"<figcaption>{escape(caption)} ({rows} layers down, {columns} experts across). {key}</figcaption></figure>"
    )
