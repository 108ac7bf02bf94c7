"""water_filled: how many slots each layer gets, so that an LRU filled on demand misses least in all.  Floor 3.

Reference: the marginal gain of a slot by the miss-ratio curve of its layer (AdapMoE, Zhong et al. 2024, and MoEpic,
2025, split a budget over layers likewise). Curves of LRU are not concave, so the next best slot is not always right:
the split is exact, by dynamic programming over layers (time L x E x slots). Ties: the later layer gets fewer. The fast
tier of the plan is empty at first.

Where another policy than LRU fills the slots, the split is still that of LRU's curves: no other policy of ours gives
every capacity in one pass. With capacities below one set (``exact_from`` of the curve) the curve is a good guess;
``least`` keeps every layer at top-k or more, where the budget allows it. What it gains is judged on requests that the
curves have not seen, beside equal slots (``_equal``); with one request the split is in time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.analysis.miss_ratio_curve import miss_ratio_curve
from moelab.domain.machine import Machine
from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.planner.empty import empty
from moelab.planner.static_plan import scored, split, total_slots


def water_filled(
    trace: Trace,
    *,
    slots_per_layer: int | Sequence[int] | None = None,
    slots: int | None = None,
    least: int | None = None,
    policy: str = "lru",
    machine: Machine | str | None = None,
    efficiency: float | None = None,
    expert_bytes: int | Sequence[int] | None = None,
    held_out: float = 0.25,
    seed: int = 0,
    phase: str | None = None,
) -> Plan:
    """Plan whose layers share exactly one of ``slots_per_layer`` (added up) and ``slots``, at least ``least`` each.

    ``least`` defaults to top-k, or to the equal share where that is less. ``phase``: whose misses are counted and
    scored, all by default. The prediction has the held-out rates and, under the same names with ``_equal``, those of
    equal slots (what does not divide goes to the first layers). Raises ``ValueError`` for budgets that are missing,
    impossible, or too small for ``least``.
    """
    header, machine = trace.header, Machine.given(machine)
    num_layers = header.num_layers
    total = total_slots(trace, slots_per_layer, slots)
    least = min(header.top_k, total // num_layers) if least is None else least
    if not 0 <= least * num_layers <= total:
        raise ValueError(
            f"least is {least} in each of {num_layers} layers, expected 0 to {total // num_layers} of {total} slots"
        )
    train, test, how = split(trace, held_out=held_out, seed=seed)
    curve = miss_ratio_curve(train, phase=phase)
    share = divide(curve.hits_per_request, total, least)
    plan = empty(trace, slots_per_layer=share, policy=policy, expert_bytes=expert_bytes)
    planner = {
        "name": "water_filled", "curves_of": "lru", "least": least, "held_out": held_out, "seed": seed, **how,
        "phase": phase or "all",
    }  # fmt: skip
    fingerprints = {**plan.fingerprints, "trace": trace.fingerprint()}
    if machine is not None:
        fingerprints["machine"] = machine.fingerprint()
    plan = plan.model_copy(update={"planner": planner, "fingerprints": fingerprints})
    each, rest = divmod(total, num_layers)
    equal = empty(
        trace, slots_per_layer=[each + (layer < rest) for layer in range(num_layers)], policy=policy,
        expert_bytes=expert_bytes,
    ).model_copy(update={"planner": planner})  # fmt: skip
    prediction = scored(plan, train, test, machine, efficiency, phase)
    beside = scored(equal, train, test, None, efficiency, phase)
    names = ("hit_rate_per_routing", "hit_rate_per_request", "reads_per_layer_step")
    prediction |= {f"{name}_equal": beside[name] for name in names if name in beside}
    return plan.model_copy(update={"prediction": prediction})


def divide(hits: np.ndarray, total: int, least: int = 0) -> list[int]:
    """Slots of each layer, ``least`` to E, that sum to ``total`` and have the most hits; ``hits`` int64 [L, E + 1]."""
    num_layers, most = hits.shape[0], hits.shape[1] - 1
    spare = min(total, num_layers * most) - least * num_layers
    best = np.zeros(spare + 1, np.int64)  # by spare slots given to the layers so far; all must be given
    best[1:] = -1
    taken = np.zeros((num_layers, spare + 1), np.int32)
    for layer in range(num_layers):
        before, best = best, np.full(spare + 1, -1, np.int64)
        for extra in range(min(most - least, spare) + 1):
            reached = before[: spare + 1 - extra]
            value = np.where(reached >= 0, reached + hits[layer, least + extra], -1)
            is_better = value > best[extra:]
            best[extra:][is_better] = value[is_better]
            taken[layer, extra:][is_better] = extra
    out, left = [least] * num_layers, spare
    for layer in range(num_layers - 1, -1, -1):
        out[layer] += int(taken[layer, left])
        left -= int(taken[layer, left])
    return out
