"""screenshot: what a browser drew, as an array: PNG screenshots decoded by the letter of the standard."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np


def pixels(data: bytes) -> np.ndarray:
    """int [height, width, 3] of an 8-bit RGB or RGBA file (W3C Portable Network Graphics, third edition, section 9)."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    assert (depth, interlaced) == (8, 0)
    channels = {2: 3, 6: 4}[kind]
    at, body = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            body += data[at + 8 : at + 8 + length]
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height, width * channels), np.uint8)
    above = np.zeros(width * channels, np.uint8)
    for row in range(height):
        above = out[row] = _unfiltered(int(rows[row, 0]), rows[row, 1:], above, channels)
    return out.reshape(height, width, channels)[:, :, :3].astype(int)


def _unfiltered(kind: int, raw: np.ndarray, above: np.ndarray, channels: int) -> np.ndarray:
    if kind == 0:
        return raw
    if kind == 1:  # each byte less the one to the left
        return np.cumsum(raw.reshape(-1, channels), axis=0, dtype=np.uint8).ravel()
    if kind == 2:  # less the one above
        return raw + above
    out, up = [0] * channels + raw.tolist(), [0] * channels + above.tolist()
    for i in range(channels, len(out)):
        left, high, corner = out[i - channels], up[i], up[i - channels]
        if kind == 3:
            guess = (left + high) // 2
        else:
            estimate = left + high - corner
            guess = min((left, high, corner), key=lambda each: abs(estimate - each))
        out[i] = (out[i] + guess) & 255
    return np.array(out[channels:], np.uint8)


def around(locator: Any, x: float, y: float, width: float, reach: int = 3) -> np.ndarray:
    """int [n, 3]: pixels near (x, y) of an element whose own units are ``width`` across."""
    image = pixels(locator.screenshot())
    scale = image.shape[1] / width
    row, column = round(y * scale), round(x * scale)
    part = image[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
    return part.reshape(-1, 3)


def has_colour(seen: np.ndarray, colour: tuple[int, int, int], within: int = 40) -> bool:
    """Is one of the pixels [n, 3] of this colour?"""
    return bool((np.abs(seen - np.array(colour)).max(1) < within).any())
