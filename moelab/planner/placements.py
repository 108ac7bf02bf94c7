"""What planners share: budgets by layer, and homes on node0 with some experts on fast0 too.  Floor 3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.domain.plan import Placements, Plan

FAST_TIER = "fast0"


def per_layer(name: str, value: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """One number for each layer; raises ``ValueError`` for another length or a negative one."""
    values = (int(value),) * num_layers if isinstance(value, int | np.integer) else tuple(int(v) for v in value)
    if len(values) != num_layers or min(values) < 0:
        raise ValueError(f"{name} is {value}, expected one number or {num_layers} of them, none negative")
    return values


def home_and_fast(
    num_layers: int, num_experts: int, chosen: Sequence[tuple[int, int]], intermediate: int | None
) -> Placements:
    """Every expert whole on node0 (tier 0), the chosen (layer, expert) on fast0 (tier 1) too."""
    layer, expert = np.divmod(np.arange(num_layers * num_experts), num_experts)
    fast = np.array(chosen, np.int64).reshape(-1, 2)
    return Placements.whole(
        np.concatenate([layer, fast[:, 0]]),
        np.concatenate([expert, fast[:, 1]]),
        np.repeat((0, 1), (len(layer), len(fast))),
        -(-(intermediate or 1) // Plan.model_fields["piece_unit"].default),
    )
