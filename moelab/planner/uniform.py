"""uniform: the first expert ids of every layer live on fast0, whatever was routed: a baseline.  Floor 3.

Reference: KTransformers ``--kt-expert-placement-strategy uniform``: ids 0..n-1 of each layer; what does not
divide goes to the first layers, one each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moelab.domain.plan import FastTier, Plan
from moelab.domain.trace import Trace
from moelab.planner.placements import FAST_TIER
from moelab.planner.static_plan import split, static_plan, total_slots


def uniform(
    trace: Trace,
    *,
    slots_per_layer: int | Sequence[int] | None = None,
    slots: int | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Plan with ids 0..n-1 of each layer on ``fast0``.

    Exactly one of ``slots_per_layer`` (added up) and ``slots``. ``held_out`` and ``seed`` choose the requests that the
    prediction is scored on; ``options``: those of ``static_plan`` (``machine``, ``phase``, ``expert_bytes``, ...).
    """
    num_layers = trace.header.num_layers
    total = total_slots(trace, slots_per_layer, slots)
    each, rest = divmod(total, num_layers)
    chosen = [(layer, expert) for layer in range(num_layers) for expert in range(each + (layer < rest))]
    train, test, how = split(trace, held_out=held_out, seed=seed)
    planner = {"name": "uniform", "held_out": held_out, "seed": seed, **how}
    return static_plan(trace, chosen, FastTier(tier=FAST_TIER, slots=total), planner, train=train, test=test, **options)
