"""layer_balanced: the hottest experts live on fast0, but no layer gets fewer or more than its bounds.  Floor 3.

Reference: the layer-balanced placement of KTransformers pull request 2064 (scores with least and most experts
per layer), which was not merged; score here is the load on the planning requests. Each layer first gets its
``least`` hottest, the rest goes to the hottest left whose layer is below ``most``. With bounds 0 and E this is
water-filling (``frequency`` with ``slots``), with equal bounds the same number per layer. Exact for a static
policy: hits are prefix sums of sorted loads. Ties: the lower layer, then the lower expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moelab.domain.plan import FastTier, Plan
from moelab.domain.trace import Trace
from moelab.planner.placements import FAST_TIER
from moelab.planner.static_plan import of_phase, split, static_plan, total_slots


def layer_balanced(
    trace: Trace,
    *,
    slots_per_layer: int | Sequence[int] | None = None,
    slots: int | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    least: int | None = None,
    most: int | None = None,
    **options: Any,
) -> Plan:
    """Plan with the hottest experts on ``fast0`` within ``least`` and ``most`` per layer (default.

    Half and twice the mean).

    Exactly one of ``slots_per_layer`` (added up) and ``slots``. ``held_out`` and ``seed`` choose the requests
    that the prediction is scored on; ``options``: those of ``static_plan`` (``machine``, ``phase``,
    ``expert_bytes``, ...).
    """
    num_layers, num_experts = trace.header.num_layers, trace.header.num_experts
    total = total_slots(trace, slots_per_layer, slots)
    mean = total / num_layers
    low = int(mean // 2) if least is None else least
    high = min(num_experts, int(-(-2 * total // num_layers))) if most is None else most
    if not 0 <= low <= mean <= high <= num_experts:
        raise ValueError(f"least {low} and most {high} per layer do not hold {total} slots in {num_layers} layers")
    train, test, how = split(trace, held_out=held_out, seed=seed)
    loads = of_phase(train, options.get("phase")).loads()
    order = np.argsort(-loads, axis=1, kind="stable")
    chosen = [(layer, int(expert)) for layer in range(num_layers) for expert in order[layer, :low]]
    rest = [(-int(loads[layer, e]), layer, int(e)) for layer in range(num_layers) for e in order[layer, low:high]]
    chosen = sorted(chosen + [(layer, expert) for _, layer, expert in sorted(rest)[: total - len(chosen)]])
    planner = {"name": "layer_balanced", "held_out": held_out, "seed": seed, "least": low, "most": high, **how}
    return static_plan(trace, chosen, FastTier(tier=FAST_TIER, slots=total), planner, train=train, test=test, **options)
