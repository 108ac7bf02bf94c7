"""planned_pieces: bytes of a plan's pieces at home, as the kernels will count them.  Floor 2."""

from __future__ import annotations

import numpy as np

from moelab.domain.plan import Plan
from moelab.kernels.piece_bytes import bytes_of_pieces


def planned_bytes(
    plan: Plan, tier: str, layer: np.ndarray, start: np.ndarray, stop: np.ndarray, hidden_size: int | None
) -> np.ndarray:
    """int64 [M] of pieces ``[start, stop)`` of experts of ``layer`` [M] on ``tier``.

    ``hidden_size`` of the model, which plans do not say; ``None``: in proportion to the units.
    """
    home = plan.format_of_tier[tier]
    return bytes_of_pieces(
        np.asarray(home.expert_bytes, np.int64)[layer], start, stop, plan.num_units, hidden_size=hidden_size,
        intermediate_size=plan.model.moe_intermediate_size, weight_format=home.weight_format,
        piece_unit=plan.piece_unit,
    )  # fmt: skip
