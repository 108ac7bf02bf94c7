"""piece_bytes: bytes of pieces on a home, to the byte as the kernels have and count them.  Floor 1.

``pieces.piece_of`` rounds a piece's rows of down_proj to tiles of 16; what counts bytes before anything is placed must
round as it does. Experts of other bytes than this house's layouts (a foreign format) or of unknown sizes are shared out
in proportion to their units. Does not know plans or nodes.
"""

from __future__ import annotations

import numpy as np

from moelab.kernels.job import GROUP, WEIGHT_FORMATS
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.pieces import piece_of


def bytes_of_pieces(
    expert_bytes: np.ndarray, start: np.ndarray, stop: np.ndarray, num_units: int, *,
    hidden_size: int | None, intermediate_size: int | None, weight_format: str, piece_unit: int = GROUP,
) -> np.ndarray:  # fmt: skip
    """int64 [M]: of the pieces ``[start, stop)`` in units, of experts of ``expert_bytes``; int arrays [M] all three.

    The pieces of a partition add up to the expert.
    """
    whole = np.asarray(expert_bytes, np.int64)
    start, stop = np.asarray(start, np.int64), np.asarray(stop, np.int64)
    out = whole * stop // num_units - whole * start // num_units
    is_ours = next((known for known in WEIGHT_FORMATS if known == weight_format), None)
    if hidden_size is None or intermediate_size is None or is_ours is None or piece_unit != GROUP:
        return out
    layout = ExpertLayout(hidden_size, intermediate_size, is_ours)
    base = num_units + 1  # one number for both ends: rows as such sort ten times slower
    ranges, number = np.unique(start * base + stop, return_inverse=True)
    exact = np.array([piece_of(layout, *divmod(int(ends), base)).num_bytes for ends in ranges], np.int64)
    return np.where(whole == layout.expert_bytes, exact[number], out)
