"""empty: a fast tier that holds nothing beforehand; the policy fills it.  Floor 3.

What a recorded engine with a demand-filled cache starts from, and the fair start for comparing dynamic policies.
It looks at no routing, so there is nothing to hold out. Every expert keeps its home on node0.
"""

from __future__ import annotations

from collections.abc import Sequence

from moelab.domain.plan import FastTier, Plan, PolicyChoice, TierFormat
from moelab.domain.trace import Trace, TraceHeader
from moelab.planner.placements import FAST_TIER, fingerprints_of, home_and_fast, per_layer, plan_model


def empty(
    trace: Trace | TraceHeader,
    *,
    slots_per_layer: int | Sequence[int] | None = None,
    slots: int | None = None,
    capacity_bytes: int | None = None,
    policy: str = "lru",
    overflow: bool = False,
    expert_bytes: int | Sequence[int] | None = None,
    fast_format: TierFormat | None = None,
) -> Plan:
    """Plan with an empty ``fast0``; exactly one of ``slots_per_layer``, ``slots`` and ``capacity_bytes`` (all layers).

    ``expert_bytes`` (one number or L) defaults to the trace's header. ``overflow``: fill on demand though what is
    in use exceeds the room, and evict after the request, as recorded engines do. ``fast_format``: of the fast tier,
    where it is not that of the home. ``trace``: its header is all that is looked at, and may come alone
    (``Engine.trace_header``). Raises ``ValueError``
    where the budget is missing or impossible, or is given in bytes and the expert bytes are not known.
    """
    header = trace.header if isinstance(trace, Trace) else trace
    bytes_of_layer = per_layer(
        "expert_bytes", header.expert_bytes if expert_bytes is None else expert_bytes, header.num_layers
    )
    if capacity_bytes is not None and 0 in bytes_of_layer:
        raise ValueError(
            f"capacity_bytes is {capacity_bytes}, but the trace of {header.model} does not say the bytes of an expert: "
            "give expert_bytes, or the capacity in slots"
        )
    if slots_per_layer is not None:
        capacity = per_layer("slots_per_layer", slots_per_layer, header.num_layers)
        fast = FastTier(tier=FAST_TIER, slots_per_layer=capacity, slots=slots, capacity_bytes=capacity_bytes)
    else:
        fast = FastTier(tier=FAST_TIER, slots=slots, capacity_bytes=capacity_bytes)
    weights = TierFormat(weight_format=header.quantization, expert_bytes=bytes_of_layer)
    return Plan(
        model=plan_model(header, header.moe_intermediate_size),
        tiers=("node0", FAST_TIER),
        placements=home_and_fast(header.num_layers, header.num_experts, [], header.moe_intermediate_size),
        fast_tiers=(fast,),
        format_of_tier={"node0": weights, FAST_TIER: fast_format or weights},
        policy=PolicyChoice(name=policy, parameters={"overflow": 1} if overflow else {}),
        planner={"name": "empty"},
        fingerprints=fingerprints_of(header, None),
    )
