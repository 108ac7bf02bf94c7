"""static_picture: a map as a PNG inside HTML, for where no JavaScript runs.  Floor 6.

One pixel for each expert, which the browser enlarges; of large maps in fewer shades, so that a notebook with several
outputs stays small. Colours as on the canvas (``moelab.palette``). Does not know
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


MOST_CELLS_IN_FULL = 20_000
_SHADES = 64
_MOST_IN_A_PALETTE = 256


def map_colours(values: np.ndarray, scale: Mapping[str, Any], shades: int | None = None) -> np.ndarray:
    """uint8 [L, E, 3]; ``scale`` as in ``ExpertMap.scale``, NaN is ``UNKNOWN``; a continuous one in ``shades``."""
    known = np.isfinite(values)
    if scale["kind"] == "categories":
        colours = np.array([rgb_of(colour) for colour in PALETTE], np.uint8)
        out = colours[np.where(known, values, 0).astype(int) % len(colours)]
    else:
        span = (scale["high"] - scale["low"]) or 1.0
        share = (np.where(known, values, scale["low"]) - scale["low"]) / span
        out = viridis(share if shades is None else np.round(share * (shades - 1)) / (shades - 1))
    out[~known] = UNKNOWN
    return out


def png(colours: np.ndarray) -> bytes:
    """A PNG file of uint8 [height, width, 3], 8 bits a channel (W3C Portable Network Graphics, third edition).

    With a palette where there are no more than 256 colours: a third of the bytes.
    """
    height, width, _ = colours.shape
    palette, place = np.unique(colours.reshape(-1, 3), axis=0, return_inverse=True)
    has_palette = len(palette) <= _MOST_IN_A_PALETTE
    pixels = (place.astype(np.uint8) if has_palette else colours).reshape(height, -1)
    rows = np.zeros((height, 1 + pixels.shape[1]), np.uint8)  # each row begins with filter 0: none
    rows[:, 1:] = pixels

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 3 if has_palette else 2, 0, 0, 0)
    known = chunk(b"PLTE", palette.astype(np.uint8).tobytes()) if has_palette else b""
    body = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + known + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def map_html(values: np.ndarray, scale: Mapping[str, Any], caption: str) -> str:
    """``<figure>`` with the map of ``values`` [L, E], its scale in words, and ``caption``."""
    shades = _SHADES if values.size > MOST_CELLS_IN_FULL else None
    data = base64.b64encode(png(map_colours(values, scale, shades))).decode()
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
