"""palette: the colours of every picture and widget, told apart by colour-blind readers. Plain values.  Floor 0.

Categories: Okabe and Ito (2008). Continuous values: viridis (van der Walt and Smith, 2015), here as 16 stops that are
joined in a straight line. Knows no theme beyond which colours vanish on a dark ground.
"""

from __future__ import annotations

import numpy as np

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
"""Of categories, in this order; on a dark ground the last one is ``ON_DARK``."""

ON_DARK = "#F0E442"
"""Okabe and Ito's yellow: weak on white, so it only stands in for black."""

VIRIDIS = (
    "#440154", "#481A6C", "#472F7D", "#414487", "#39568C", "#31688E", "#2A788E", "#23888E",
    "#1F988B", "#22A884", "#35B779", "#54C568", "#7AD151", "#A5DB36", "#D2E21B", "#FDE725",
)  # fmt: skip
"""From low to high."""


def rgb_of(colour: str) -> tuple[int, int, int]:
    """``#RRGGBB`` as three numbers of 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def viridis(share: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] of shares from 0 to 1; what lies outside takes the colour of the end."""
    stops = np.array([rgb_of(colour) for colour in VIRIDIS], np.float64)
    place = np.clip(np.asarray(share, np.float64), 0, 1) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    part = (place - low)[..., None]
    return np.floor(stops[low] * (1 - part) + stops[low + 1] * part + 0.5).astype(np.uint8)
