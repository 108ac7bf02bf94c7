"""front_loading: whole layers from the first MoE layer on live on fast0, until it is full: a baseline.  Floor 3.

Reference: KTransformers ``--kt-expert-placement-strategy front-loading``; the last layer reached gets its first ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moelab.domain.plan import FastTier, Plan
from moelab.domain.trace import Trace
from moelab.planner.placements import FAST_TIER
from moelab.planner.static_plan import split, static_plan, total_slots


def front_loading(
    trace: Trace,
    *,
    slots_per_layer: int | Sequence[int] | None = None,
    slots: int | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Plan with layers 0, 1, ... on ``fast0`` as far as they fit.

    Exactly one of ``slots_per_layer`` (added up) and ``slots``. ``held_out`` and ``seed`` choose the requests that the
    prediction is scored on; ``options``: those of ``static_plan`` (``machine``, ``phase``, ``expert_bytes``, ...).
    """
    num_experts = trace.header.num_experts
    total = total_slots(trace, slots_per_layer, slots)
    chosen = [divmod(key, num_experts) for key in range(total)]
    train, test, how = split(trace, held_out=held_out, seed=seed)
    planner = {"name": "front_loading", "held_out": held_out, "seed": seed, **how}
    return static_plan(trace, chosen, FastTier(tier=FAST_TIER, slots=total), planner, train=train, test=test, **options)
