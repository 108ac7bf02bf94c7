"""lossy_costs: what a lossy mode was measured to cost, so that no result of one stands without it.  Floor 1.

The table is shipped with the model that it was measured on: rows of ``moelab bench nll --out FILE`` that are not exact.
Knows the settings that were measured and no others: nothing is interpolated, and of another model nothing is said.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from moelab.domain.lossy import Lossy
from moelab.store.shipped import shipped

TABLES = {"nano": "nano/lossy_nll.json"}


def with_cost(lossy: Lossy, model: str) -> str:
    """The mode and its cost in held-out NLL where it was measured on ``model``, else how to measure it."""
    if str(lossy) == "exact":
        return str(lossy)
    rows = _rows(model)
    row = rows.get(str(lossy))
    if row is not None:
        low, high = row["cost_interval"]
        return (
            f"{lossy}; cost {row['cost']:+.4f} nats a token ({low:+.4f} to {high:+.4f}) on {row['num_tokens']:,} "
            f"held-out tokens, {row['measured_with']}"
        )
    known = f"measured are {'; '.join(rows)}" if rows else f"nothing was measured on {model}"
    return f"{lossy}; cost in NLL not known: {known} (`moelab bench nll`)"


@cache
def _rows(model: str) -> dict[str, dict[str, Any]]:
    """Rows by their mode; none for a model that ships no table."""
    if model not in TABLES:
        return {}
    with open(shipped(TABLES[model]), encoding="utf-8") as file:
        document = json.load(file)
    return {row["lossy"]: row for row in document["rows"] if row["lossy"] != "exact"}
