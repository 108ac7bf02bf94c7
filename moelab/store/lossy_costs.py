"""lossy_costs: what a lossy mode was measured to cost, so that no result of one stands without it.  Floor 1.

The table is shipped with the model that it was measured on: rows of ``moelab bench nll --out FILE`` that are not exact.
Knows the settings that were measured and no others: where model, tier or arithmetic differ, what was measured is told
as what it is, a figure of other settings. Nothing is interpolated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from moelab.domain.lossy import Lossy
from moelab.domain.plan import Plan
from moelab.store.shipped import shipped

TABLES = {"nano": "nano/lossy_nll.json"}


@dataclass(frozen=True)
class LossyRun:
    """What a lossy mode ran on. ``None``: not known (a trace does not say how its engine would compute), or no tier."""

    model: str
    num_layers: int
    num_experts: int
    policy: str | None = None
    slots_per_layer: int | None = None
    activation: str | None = None
    dense_dtype: str | None = None

    def differs(self, row: dict[str, Any], lossy: Lossy) -> str | None:
        """What of the measured row is another, where it matters: the tier does for cache-aware routing alone."""
        names = ["activation", "dense_dtype"]
        if lossy.cache_bias:
            names += ["policy", "slots_per_layer"]
        others = [
            f"{name.replace('_', ' ')} {row[name]} there, {getattr(self, name)} here"
            for name in names
            if getattr(self, name) != row[name] and (getattr(self, name) is not None or name in names[2:])
        ]
        return "; ".join(others) or None


def tier_of(plan: Plan | None) -> dict[str, Any]:
    """``policy`` and ``slots_per_layer`` of a plan's first fast tier; slots only where all layers have as many."""
    if plan is None or not plan.fast_tiers:
        return {}
    slots = set(plan.fast_tiers[0].slots_per_layer or ())
    return {"policy": plan.policy.name, "slots_per_layer": slots.pop() if len(slots) == 1 else None}


def with_cost(lossy: Lossy, run: LossyRun) -> str:
    """The mode and its cost in held-out NLL where it was measured on this model, else how to measure it."""
    if str(lossy) == "exact":
        return str(lossy)
    rows = _rows(run.model, run.num_layers, run.num_experts)
    row = rows.get(str(lossy))
    if row is None:
        known = f"measured are {'; '.join(rows)}" if rows else f"nothing was measured on {run.model}"
        return f"{lossy}; cost in NLL not known: {known} (`moelab bench nll`)"
    low, high = row["cost_interval"]
    cost = (
        f"{row['cost']:+.4f} nats a token ({low:+.4f} to {high:+.4f}) on {row['num_tokens']:,} held-out tokens, "
        f"{row['measured_with']}"
    )
    others = run.differs(row, lossy)
    if others is not None:
        return f"{lossy}; cost in NLL not known here ({others}); elsewhere {cost} (`moelab bench nll`)"
    return f"{lossy}; cost {cost}"


@cache
def _rows(model: str, num_layers: int, num_experts: int) -> dict[str, dict[str, Any]]:
    """Rows by their mode; none for a model that ships no table, or another of its name."""
    if model not in TABLES:
        return {}
    with open(shipped(TABLES[model]), encoding="utf-8") as file:
        document = json.load(file)
    return {
        row["lossy"]: row
        for row in document["rows"]
        if row["lossy"] != "exact" and (row["num_layers"], row["num_experts"]) == (num_layers, num_experts)
    }
