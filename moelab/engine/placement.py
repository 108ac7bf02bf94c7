"""Placement: a plan's fast tier in a running engine; what `Engine.use_plan` does, and what `use_lossy` asks first.

Plan and mode are checked against model and engine before anything changes. Fast tiers bring Numba, which is imported
where there is one. It does not know steps or decisions. Floor 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moelab.domain.lossy import Lossy
from moelab.domain.plan import Plan, TierFormat
from moelab.engine.device import choose_device
from moelab.engine.fast_tier.plan import check_plan, layout_of_slots
from moelab.engine.homes import homeless_of

if TYPE_CHECKING:
    from moelab.engine.engine import Engine
    from moelab.engine.fast_tier.fast_tier import FastTier
    from moelab.policies import Policy


def carry_out(
    engine: Engine, plan: Plan | None, *, policy: Policy | None, late: str, keep_log: bool, device: str | None
) -> FastTier | None:
    """The engine's fast tier from its next step on; ValueError where the plan does not fit, and nothing has changed."""
    if plan is None:
        check_lossy(engine, engine.lossy, None)
        engine.set_fast_tier(None)
        return None
    plan.check_matches(
        what="engine", model=engine.name, num_layers=len(engine.routed), num_experts=engine.spec.n_routed_experts,
        top_k=engine.spec.num_experts_per_tok, fingerprint=engine.spec.fingerprint,
    )  # fmt: skip
    from moelab.engine.fast_tier.fast_tier import FastTier
    from moelab.policies.session import PolicySession

    check_plan(plan, engine.routed, late)
    session = PolicySession(plan, policy)
    where = engine.device if device is None else choose_device(device)
    engine.set_fast_tier(None)  # its memory may be what the new one needs
    # A CPU that stands in for a device keeps to float32 where the engine was loaded so.
    dtype = torch.float32 if where.type == "cpu" and engine.model.dtype is torch.float32 else None
    tier = FastTier(engine.routed, plan, session, where, late=late, keep_log=keep_log, dtype=dtype)
    engine.set_fast_tier(tier)
    engine.tier_choice = {"policy": policy, "late": late, "keep_log": keep_log, "device": device}
    return tier


def check_use(engine: Engine, plan: Plan | None, late: str) -> None:
    """ValueError where the tier cannot change alone, because homes would have to come or go with it."""
    if homeless_of(engine.routed).any():
        raise ValueError(
            "experts of this engine live on its fast tier alone (keep_home false), which must stay for them: "
            "moelab.apply(engine, plan) brings them home first"
        )
    if plan is not None and not plan.keep_home:
        raise ValueError(
            "plan has keep_home false: experts would give up their homes, which use_plan does not touch; "
            "moelab.apply(engine, plan) carries it out, or load(plan=...)"
        )
    nodes = [] if plan is None else [tier for tier in plan.tiers if tier.startswith("node")]
    if plan is not None and not plan.fast_tiers and len(nodes) > 1:
        raise ValueError(
            f"plan places homes on {', '.join(nodes)} and has no fast tier: moelab.apply(engine, plan) carries it out, "
            "or load(plan=...)"
        )


def check_change(engine: Engine, plan: Plan, num_nodes: int) -> None:
    """ValueError where the engine could not go over to the plan's fast tier, or to none, with homes on that many nodes.

    Everything that `carry_out` would find wrong, before anything is given up; but for the tier's memory.
    """
    if not plan.fast_tiers:
        check_lossy(engine, engine.lossy, None)
        return
    from moelab.policies.session import PolicySession

    check_plan(plan, engine.routed, num_nodes=num_nodes)
    PolicySession(plan)


def check_lossy(engine: Engine, lossy: Lossy | None, tier: FastTier | None) -> None:
    """ValueError for a mode that the model, or the engine with this tier, cannot run."""
    if lossy is None:
        return
    lossy.check_top_k(engine.spec.num_experts_per_tok)
    if lossy.cache_bias and tier is None:
        raise ValueError(
            f"cache_bias is {lossy.cache_bias:g} without a fast tier, so that no expert is resident; expected one: "
            "use_plan first, or use_lossy(None)"
        )


def slot_format(engine: Engine, weight_format: str) -> TierFormat:
    """A format of the fast tier with the bytes that the model's experts take in it."""
    layout = layout_of_slots(weight_format, engine.routed[0].layout)
    return TierFormat(weight_format=weight_format, expert_bytes=(layout.expert_bytes,) * len(engine.routed))
