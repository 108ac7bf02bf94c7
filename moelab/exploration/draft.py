"""draft: a placement as three maps layer x expert, quick to change; to and from a Plan.  Floor 4.

A plan is checked and immutable; hands want arrays. Nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moelab.domain.plan import Placements, Plan
from moelab.planner.balanced_packing import whole_shares
from moelab.planner.step_maximum import CUT

FAST = "fast0"


@dataclass(frozen=True, eq=False)
class Draft:
    """``masks`` int64 [L, E]: bit n where node n holds a whole copy, ``CUT`` where pieces lie on all nodes; ``fast``,
    ``pinned`` bool [L, E]: on fast0 from the start, and for good; ``piece_units`` int64 [num_nodes]: of one cut."""

    masks: np.ndarray
    fast: np.ndarray
    pinned: np.ndarray
    piece_units: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.piece_units)

    @property
    def copies(self) -> np.ndarray:
        """int64 [L, E]: on nodes, pieces of an expert together count as one."""
        return np.maximum(np.bitwise_count(self.masks).astype(np.int64), 1)

    @classmethod
    def of_plan(cls, plan: Plan) -> Draft:
        """Raises ``ValueError`` for plans whose pieces are not one for each node, the same for all cut experts."""
        nodes = [tier for tier in plan.tiers if tier.startswith("node")]
        shape = (plan.model.num_layers, plan.model.num_experts)
        columns = plan.placements.arrays()
        number = np.array([nodes.index(tier) if tier in nodes else -1 for tier in plan.tiers])[columns["tier"]]
        whole = (columns["start"] == 0) & (columns["stop"] == plan.num_units)
        masks = np.zeros(shape, np.int64)
        at = whole & (number >= 0)
        np.bitwise_or.at(masks, (columns["layer"][at], columns["expert"][at]), 1 << number[at])
        units = _equal_units(plan.num_units, len(nodes))
        pieces = ~whole
        if pieces.any():
            seen = np.stack([number, columns["stop"] - columns["start"]])[:, pieces]
            distinct = np.unique(seen, axis=1)
            if distinct.shape[1] != len(nodes) or (distinct[0] != np.arange(len(nodes))).any():
                raise ValueError(
                    "the plan cuts experts in several ways, expected one piece of the same rows on each node: "
                    "explore a plan of row_split or split_some"
                )
            units = distinct[1]
        fast = plan.resident(FAST) if FAST in plan.tiers else np.zeros(shape, bool)
        pinned = np.zeros(shape, bool)
        for layer, expert, tier in plan.pinned:
            pinned[layer, expert] |= tier == FAST
        return cls(masks, fast, pinned, units)

    def put_into(self, plan: Plan, **changes: Any) -> Plan:
        """``plan`` with this placement and other ``changes`` of its fields, all checked again."""
        pinned = tuple((int(layer), int(expert), FAST) for layer, expert in np.argwhere(self.pinned))
        fields: dict[str, Any] = {name: getattr(plan, name) for name in Plan.model_fields}
        return Plan(
            **{**fields, "placements": self.placements(plan.tiers, plan.num_units), "pinned": pinned, **changes}
        )

    def placements(self, tiers: tuple[str, ...], num_units: int) -> Placements:
        """Columns in the order of layers, experts, tiers."""
        ends = np.cumsum(self.piece_units)
        parts = []
        for node in range(self.num_nodes):
            tier = tiers.index(f"node{node}")
            parts.append(_rows(self.masks >> node & 1, 0, num_units, tier))
            parts.append(_rows(self.masks == CUT, ends[node] - self.piece_units[node], ends[node], tier))
        if self.fast.any():
            parts.append(_rows(self.fast, 0, num_units, tiers.index(FAST)))
        rows = np.concatenate(parts, axis=1)
        # One sort here spares the checks and sums of a plan five of them.
        order = np.argsort((rows[0] * self.masks.shape[1] + rows[1]) * len(tiers) + rows[4], kind="stable")
        columns = [tuple(column) for column in rows[:, order].tolist()]
        # The plan checks them: two checks of 80,000 rows would cost a preview its time.
        return Placements.model_construct(
            layer=columns[0], expert=columns[1], start=columns[2], stop=columns[3], tier=columns[4]
        )

    def changed(self, **arrays: np.ndarray) -> Draft:
        return replace(self, **arrays)


def _equal_units(num_units: int, num_nodes: int) -> np.ndarray:
    return whole_shares(num_units, np.ones(num_nodes))


def _rows(where: np.ndarray, start: int, stop: int, tier: int) -> np.ndarray:
    layer, expert = np.nonzero(where)
    out = np.empty((5, len(layer)), np.int64)
    out[0], out[1], out[2], out[3], out[4] = layer, expert, start, stop, tier
    return out
