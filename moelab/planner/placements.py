"""What all planners write into a plan alike: the model, fingerprints, and placements from masks of tiers.  Floor 3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.plan import Placements, Plan, PlanModel
from moelab.domain.trace import TraceHeader

FAST_TIER = "fast0"


def per_layer(name: str, value: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """One number for each layer; raises ``ValueError`` for another length or a negative one."""
    values = (int(value),) * num_layers if isinstance(value, int | np.integer) else tuple(int(v) for v in value)
    if len(values) != num_layers or min(values) < 0:
        raise ValueError(f"{name} is {value}, expected one number or {num_layers} of them, none negative")
    return values


def num_units_of(intermediate: int | None) -> int:
    """Units of rows of one expert; 1 where its size is not known."""
    return -(-(intermediate or 1) // Plan.model_fields["piece_unit"].default)


def plan_model(header: TraceHeader, intermediate: int | None) -> PlanModel:
    return PlanModel(
        name=header.model,
        model_type=header.model_type,
        num_layers=header.num_layers,
        num_experts=header.num_experts,
        top_k=header.top_k,
        moe_intermediate_size=intermediate,
        fingerprint=header.model_fingerprint,
    )


def fingerprints_of(header: TraceHeader, trace: str | None, machine: Machine | None = None) -> dict[str, str]:
    """Of what a plan was made from; ``trace``: the trace's own, ``None`` where its routing was not looked at."""
    found = {
        "trace": trace, "machine": None if machine is None else machine.fingerprint(),
        "model": header.model_fingerprint,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def placements_of_masks(held: np.ndarray, num_tiers: int, piece_units: Sequence[int] | np.ndarray) -> Placements:
    """Columns by layer, expert, tier; ``held`` int64 [L, E]: bit v where tier v holds a whole copy, 0: cut.

    A cut expert has one piece on each of the first tiers, of ``piece_units`` [num_nodes] units of rows.
    """
    num_units, ends = int(np.sum(piece_units)), np.cumsum(piece_units)
    columns: list[np.ndarray] = []
    for tier in range(num_tiers):
        layer, expert = np.nonzero(held >> tier & 1)
        columns.append(np.stack([layer, expert, layer * 0, layer * 0 + num_units, layer * 0 + tier]))
        if tier < len(piece_units):
            layer, expert = np.nonzero(held == 0)
            start, stop = ends[tier] - piece_units[tier], ends[tier]
            columns.append(np.stack([layer, expert, layer * 0 + start, layer * 0 + stop, layer * 0 + tier]))
    rows = np.concatenate(columns, axis=1)
    rows = rows[:, np.lexsort((rows[4], rows[1], rows[0]))]
    names = ("layer", "expert", "start", "stop", "tier")
    return Placements(**{name: tuple(row.tolist()) for name, row in zip(names, rows, strict=True)})


def home_and_fast(
    num_layers: int, num_experts: int, chosen: Sequence[tuple[int, int]], intermediate: int | None
) -> Placements:
    """Every expert whole on node0 (tier 0), the chosen (layer, expert) on fast0 (tier 1) too."""
    held = np.ones((num_layers, num_experts), np.int64)
    fast = np.array(chosen, np.int64).reshape(-1, 2)
    held[fast[:, 0], fast[:, 1]] |= 2
    return placements_of_masks(held, 2, (num_units_of(intermediate),))
