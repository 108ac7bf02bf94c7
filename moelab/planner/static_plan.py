"""static_plan: a plan that keeps chosen experts on fast0 for good, every expert at home on node0, and its score.

Floor 3. What the planners of static placements share (``frequency``, ``uniform``, ``front_loading``, ``random``,
``layer_balanced``): the split into planning and held-out part, the plan's documents, and the prediction on the
held-out part by the simulator. Does not know how experts are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moelab.domain.machine import Machine
from moelab.domain.plan import FastTier, Plan, TierFormat
from moelab.domain.trace import Trace
from moelab.planner.layer_steps import StepKind, groups_of_requests
from moelab.planner.placements import FAST_TIER, fingerprints_of, home_and_fast, per_layer, plan_model
from moelab.simulator.simulate import simulate


def static_plan(
    trace: Trace,
    chosen: Sequence[tuple[int, int]],
    fast: FastTier,
    planner: Mapping[str, Any],
    *,
    train: Trace,
    test: Trace,
    machine: Machine | None = None,
    efficiency: float | None = None,
    phase: str | None = None,
    expert_bytes: int | Sequence[int] | None = None,
    moe_intermediate_size: int | None = None,
    weight_format: str | None = None,
    score: bool = True,
) -> Plan:
    """Plan with the ``chosen`` (layer, expert) on ``fast``, scored on ``test`` unless ``score`` is false.

    ``planner`` says who chose and the split. ``expert_bytes`` (one number or L), ``moe_intermediate_size`` and
    ``weight_format`` default to the trace's header.
    """
    header = trace.header
    num_layers, num_experts = header.num_layers, header.num_experts
    intermediate = moe_intermediate_size or header.moe_intermediate_size
    bytes_of_layer = per_layer(
        "expert_bytes", header.expert_bytes if expert_bytes is None else expert_bytes, num_layers
    )
    weights = TierFormat(weight_format=weight_format or header.quantization, expert_bytes=bytes_of_layer)
    plan = Plan(
        model=plan_model(header, intermediate),
        tiers=("node0", FAST_TIER),
        placements=home_and_fast(num_layers, num_experts, chosen, intermediate),
        fast_tiers=(fast,),
        format_of_tier={"node0": weights, FAST_TIER: weights},
        planner={**planner, "phase": phase or "all"},
        fingerprints=fingerprints_of(header, trace.fingerprint(), machine),
    )
    if not score:
        return plan
    return plan.model_copy(update={"prediction": scored(plan, train, test, machine, efficiency, phase)})


def total_slots(trace: Trace, slots_per_layer: int | Sequence[int] | None, slots: int | None) -> int:
    """Slots of all layers together, from exactly one of both; raises ``ValueError`` for others or too many."""
    num_layers, num_experts = trace.header.num_layers, trace.header.num_experts
    if (slots_per_layer is None) == (slots is None):
        raise ValueError("got both or neither of slots_per_layer and slots, expected exactly one")
    total = int(slots) if slots is not None else sum(per_layer("slots_per_layer", slots_per_layer or 0, num_layers))
    if not 0 <= total <= num_layers * num_experts:
        raise ValueError(f"slots is {total}, expected 0..{num_layers * num_experts}")
    return total


def split(trace: Trace, *, held_out: float, seed: int, steps: StepKind = "step") -> tuple[Trace, Trace, dict[str, Any]]:
    """(planning part, held-out part, how it was split) by request; what cannot be parted by request is cut in time.

    Requests that share steps stay together, because half a batch is another batch; with ``steps`` ``"token"`` they
    share none. Without a held-out part (``held_out`` 0, or a single step) both parts are the whole trace, marked
    ``split: none``. The fraction is rounded to whole groups of requests, at least one on each side.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is {held_out}, expected a fraction from 0 to below 1")
    ids = np.unique(trace.tokens.request)
    of_step = np.unique(trace.tokens.step)
    if held_out == 0 or (len(ids) < 2 and len(of_step) < 2):
        return trace, trace, {"split": "none", "num_requests": len(ids)}
    group, num_groups = groups_of_requests(trace, steps)
    if num_groups < 2:
        if len(of_step) < 2:
            return trace, trace, {"split": "none", "num_requests": len(ids)}
        last = of_step[min(len(of_step) - 1, max(1, round((1 - held_out) * len(of_step))))]
        in_test = trace.tokens.step >= last
        return trace.take(~in_test), trace.take(in_test), {"split": "time", "num_requests": len(ids)}
    num_test = min(num_groups - 1, max(1, round(held_out * num_groups)))
    test_ids = ids[np.isin(group, np.random.default_rng(seed).permutation(num_groups)[:num_test])]
    in_test = np.isin(trace.tokens.request, test_ids)
    how = {"split": "request", "num_requests": len(ids), "held_out_requests": test_ids.tolist()}
    if num_groups < len(ids):
        how["num_groups_of_requests"] = num_groups
    return trace.take(~in_test), trace.take(in_test), how


def of_phase(trace: Trace, phase: str | None) -> Trace:
    if phase is None:
        return trace
    code = {"prefill": 0, "decode": 1}.get(phase)
    if code is None:
        raise ValueError(f"phase is {phase!r}, expected prefill or decode")
    return trace.take(trace.tokens.phase == code)


def scored(
    plan: Plan, train: Trace, test: Trace, machine: Machine | None, efficiency: float | None, phase: str | None
) -> dict[str, Any]:
    """Prediction: on the held-out part, and beside it the rate on the part that was counted."""
    is_held_out = plan.planner["split"] != "none"
    on_test = simulate(test, plan, machine, phase=phase, efficiency=efficiency, by_step=False, progress=False)
    on_train = simulate(train, plan, phase=phase, by_step=False, progress=False) if is_held_out else on_test
    prediction = {
        "scored_on": "held-out requests" if plan.planner["split"] == "request" else
        "held-out steps (split in time)" if is_held_out else "the planning requests (in sample)",
        "hit_rate_per_routing": on_test.hit_rate_per_routing,
        "hit_rate_per_request": on_test.hit_rate_per_request,
        "reads_per_layer_step": on_test.reads_per_layer_step,
        "hit_rate_per_routing_in_sample": on_train.hit_rate_per_routing,
        "hit_rate_per_request_in_sample": on_train.hit_rate_per_request,
        **(on_test.prediction or {}),
    }  # fmt: skip
    return {name: value for name, value in prediction.items() if value is not None}
