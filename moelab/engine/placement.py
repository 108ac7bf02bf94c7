"""Placement: a plan's fast tier in a running engine; what `Engine.use_plan` does.

The plan is checked against model and engine before anything changes. It does not know steps or policies' decisions.
Floor 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moelab.domain.plan import Plan, TierFormat
from moelab.engine.device import choose_device
from moelab.engine.fast_tier.fast_tier import FastTier
from moelab.engine.fast_tier.plan import check_plan, layout_of_slots
from moelab.policies.session import PolicySession

if TYPE_CHECKING:
    from moelab.engine.engine import Engine
    from moelab.policies import Policy


def carry_out(
    engine: Engine, plan: Plan | None, *, policy: Policy | None, late: str, keep_log: bool, device: str | None
) -> FastTier | None:
    """The engine's fast tier from its next step on; ValueError where the plan does not fit, and nothing has changed."""
    if plan is None:
        engine.set_fast_tier(None)
        return None
    plan.check_matches(
        what="engine", model=engine.name, num_layers=len(engine.routed), num_experts=engine.spec.n_routed_experts,
        top_k=engine.spec.num_experts_per_tok, fingerprint=engine.spec.fingerprint,
    )  # fmt: skip
    check_plan(plan, engine.routed, late)
    session = PolicySession(plan, policy)
    where = engine.device if device is None else choose_device(device)
    engine.set_fast_tier(None)  # its memory may be what the new one needs
    tier = FastTier(engine.routed, plan, session, where, late=late, keep_log=keep_log)
    engine.set_fast_tier(tier)
    return tier


def slot_format(engine: Engine, weight_format: str) -> TierFormat:
    """A format of the fast tier with the bytes that the model's experts take in it."""
    layout = layout_of_slots(weight_format, engine.routed[0].layout)
    return TierFormat(weight_format=weight_format, expert_bytes=(layout.expert_bytes,) * len(engine.routed))
