"""Seeded random traces and plans for tests: skewed routing, batches, prefill chunks, unrouted slots."""

from __future__ import annotations

import numpy as np

from moelab.domain.plan import FastTier, Placements, Plan, PlanModel, PolicyChoice, TierFormat
from moelab.domain.trace import NO_EXPERT, Phase, TokenTable, Trace, TraceHeader


def seeded_trace(
    seed: int = 0,
    *,
    num_layers: int = 3,
    num_experts: int = 12,
    top_k: int = 3,
    num_requests: int = 4,
    prefill_tokens: int = 5,
    decode_tokens: int = 12,
    batch: int = 1,
    unrouted: float = 0.0,
    skew: float = 1.0,
    persistence: float = 0.5,
    expert_bytes: tuple[int, ...] | None = None,
) -> Trace:
    """Requests in groups of ``batch`` that prefill in one chunk each and then decode together."""
    rng = np.random.default_rng(seed)
    popularity = rng.normal(0, skew, (num_layers, num_experts))
    experts, steps, requests, positions, phases = [], [], [], [], []
    step = 0

    def routed(previous: np.ndarray | None) -> np.ndarray:
        rows = np.empty((num_layers, top_k), np.uint16)
        for layer in range(num_layers):
            score = popularity[layer] + rng.gumbel(size=num_experts)
            if previous is not None:
                kept = previous[layer][previous[layer] != NO_EXPERT]
                score[kept] += 2 * persistence
            rows[layer] = np.argsort(-score)[:top_k]
        return rows

    for first in range(0, num_requests, batch):
        group = range(first, min(first + batch, num_requests))
        last: dict[int, np.ndarray | None] = {}
        for request in group:
            for position in range(prefill_tokens):
                last[request] = routed(last.get(request))
                experts.append(last[request])
                steps.append(step), requests.append(request), positions.append(position)
                phases.append(Phase.PREFILL)
            step += prefill_tokens > 0
        for position in range(prefill_tokens, prefill_tokens + decode_tokens):
            for request in group:
                last[request] = routed(last.get(request))
                experts.append(last[request])
                steps.append(step), requests.append(request), positions.append(position)
                phases.append(Phase.DECODE)
            step += 1
    ids = np.array(experts, np.uint16).reshape(-1, num_layers, top_k)
    weights = np.sort(rng.random(ids.shape), axis=2)[:, :, ::-1].astype(np.float16)
    dropped = rng.random(ids.shape) < unrouted
    ids[dropped], weights[dropped] = NO_EXPERT, 0
    header = TraceHeader(
        model="seeded",
        model_type="test",
        num_layers=num_layers,
        num_experts=num_experts,
        top_k=top_k,
        model_layer_of_layer=tuple(range(num_layers)),
        expert_bytes=expert_bytes or (1000,) * num_layers,
        hidden_size=64,
        moe_intermediate_size=64,
        engine="tests",
        quantization="int4",
        licence="none",
        provenance=f"tests/seeded_traces.py seed {seed}",
        synthetic=True,
        domains=("even", "odd"),
    )
    table = TokenTable.build(
        step=steps, request=requests, position=positions, phase=phases, domain=np.array(requests, int) % 2
    )
    return Trace(header, ids, weights, table)


def trace_of_sets(sets: list[list[int]], *, num_experts: int, num_layers: int = 1) -> Trace:
    """Hand-written trace: ``sets[r]`` is what layer ``r % num_layers`` routes in step ``r // num_layers``."""
    top_k = max(map(len, sets))
    ids = np.full((len(sets), top_k), NO_EXPERT, np.uint16)
    for row, chosen in enumerate(sets):
        ids[row, : len(chosen)] = chosen
    ids = ids.reshape(-1, num_layers, top_k)
    base = seeded_trace(num_layers=num_layers, num_experts=num_experts, top_k=top_k, num_requests=1, decode_tokens=1)
    table = TokenTable.build(step=np.arange(len(ids)), request=0, position=np.arange(len(ids)), phase=Phase.DECODE)
    return Trace(base.header, ids, (ids != NO_EXPERT).astype(np.float16), table)


def plan_for(
    trace: Trace,
    policy: str = "static",
    *,
    slots_per_layer: int | None = None,
    slots: int | None = None,
    capacity_bytes: int | None = None,
    resident: list[tuple[int, int]] | None = None,
    pinned: list[tuple[int, int]] | None = None,
    upload_budget: int | None = None,
    parameters: dict[str, float | int] | None = None,
    expert_bytes: tuple[int, ...] | None = None,
) -> Plan:
    """Everything home on node0; fast0 where a capacity is given, with some residents."""
    header = trace.header
    layer, expert = np.divmod(np.arange(header.num_layers * header.num_experts), header.num_experts)
    units = -(-(header.moe_intermediate_size or 32) // 32)
    home = Placements.whole(layer, expert, np.zeros_like(layer), units)
    has_fast = slots_per_layer is not None or slots is not None or capacity_bytes is not None
    placed = resident or []
    columns = {
        "layer": home.layer + tuple(layer for layer, _ in placed),
        "expert": home.expert + tuple(expert for _, expert in placed),
        "start": home.start + (0,) * len(placed),
        "stop": home.stop + (units,) * len(placed),
        "tier": home.tier + (1,) * len(placed),
    }
    tiers = ("node0", "fast0") if has_fast else ("node0",)
    fast = FastTier(
        tier="fast0",
        slots_per_layer=None if slots_per_layer is None else (slots_per_layer,) * header.num_layers,
        slots=slots,
        capacity_bytes=capacity_bytes,
    ) if has_fast else None  # fmt: skip
    return Plan(
        model=PlanModel(
            name=header.model,
            model_type=header.model_type,
            num_layers=header.num_layers,
            num_experts=header.num_experts,
            top_k=header.top_k,
            moe_intermediate_size=header.moe_intermediate_size or 32,
        ),
        tiers=tiers,
        placements=Placements(**columns),
        fast_tiers=(fast,) if fast else (),
        format_of_tier={
            t: TierFormat(weight_format="int4", expert_bytes=expert_bytes or header.expert_bytes) for t in tiers
        },
        pinned=tuple((*key, "fast0") for key in pinned or []),
        policy=PolicyChoice(name=policy, parameters=parameters or {}),
        upload_budget=upload_budget,
    )
