"""frequency: the experts with the highest load on the planning requests live on fast0.  Floor 3.

Reference: KTransformers' `frequency` placement and Fiddler's popular experts; per layer here unless a
global number of slots is given (then the hottest of all layers: water-filling, exact for a static
policy because its hits are prefix sums of the sorted loads). Ties: the lower layer, then the lower
expert id, is taken first. Every expert keeps its home on node0; the policy is static.

Held out: loads come from some requests, the prediction is scored on the others, by the simulator. One
request cannot be split: its steps are cut in time and the plan says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.plan import FastTier, Plan
from moelab.domain.trace import Trace
from moelab.planner.placements import FAST_TIER, per_layer
from moelab.planner.static_plan import of_phase, split, static_plan


def frequency(
    trace: Trace,
    *,
    slots_per_layer: int | Sequence[int] | None = None,
    slots: int | None = None,
    machine: Machine | str | None = None,
    efficiency: float | None = None,
    expert_bytes: int | Sequence[int] | None = None,
    moe_intermediate_size: int | None = None,
    weight_format: str | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    phase: str | None = None,
    score: bool = True,
) -> Plan:
    """Plan with the hottest experts on ``fast0``; exactly one of ``slots_per_layer`` and ``slots`` (all layers).

    ``expert_bytes`` (one number or L), ``moe_intermediate_size`` and ``weight_format`` default to the trace's
    header and describe the experts that the plan will run, so another expert shape is given here.
    ``held_out``: fraction of the requests that the prediction is scored on, 0 for none. ``phase``: whose
    tokens are counted and scored (``prefill``, ``decode``), all by default. ``machine`` adds a predicted time;
    without ``score`` there is no prediction, which takes a simulation.
    Raises ``ValueError`` where the budget or the shape is missing or impossible.
    """
    header, machine = trace.header, Machine.given(machine)
    num_layers, num_experts = header.num_layers, header.num_experts
    if (slots_per_layer is None) == (slots is None):
        raise ValueError("frequency got both or neither of slots_per_layer and slots, expected exactly one")
    train, test, how = split(trace, held_out=held_out, seed=seed)
    loads = of_phase(train, phase).loads()
    if slots_per_layer is not None:
        capacity = per_layer("slots_per_layer", slots_per_layer, num_layers)
        if max(capacity) > num_experts:
            raise ValueError(
                f"slots_per_layer is {max(capacity)}, expected at most the {num_experts} experts of a layer"
            )
        order = np.argsort(-loads, axis=1, kind="stable")
        chosen = [(layer, int(e)) for layer in range(num_layers) for e in np.sort(order[layer, : capacity[layer]])]
        fast = FastTier(tier=FAST_TIER, slots_per_layer=capacity)
    else:
        assert slots is not None
        if not 0 <= slots <= num_layers * num_experts:
            raise ValueError(f"slots is {slots}, expected 0..{num_layers * num_experts}")
        keys = np.sort(np.argsort(-loads.ravel(), kind="stable")[:slots])
        chosen = [(int(k) // num_experts, int(k) % num_experts) for k in keys]
        fast = FastTier(tier=FAST_TIER, slots=slots)
    planner = {"name": "frequency", "held_out": held_out, "seed": seed, **how}
    return static_plan(
        trace, chosen, fast, planner, train=train, test=test, machine=machine, efficiency=efficiency, phase=phase,
        expert_bytes=expert_bytes, moe_intermediate_size=moe_intermediate_size, weight_format=weight_format,
        score=score,
    )  # fmt: skip
