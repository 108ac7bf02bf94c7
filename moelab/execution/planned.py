"""Which plan a simulation or replay runs under: a file, the one that ships, or a frequency plan made now.

Knows the order of precedence and says which was taken in ``Plan.planner``. Floor 4.
"""

from __future__ import annotations

from pathlib import Path

from moelab.domain.plan import Plan, PolicyChoice
from moelab.domain.trace import Trace
from moelab.planner import PLANNERS
from moelab.policies import POLICIES
from moelab.store import shipped

DEFAULT_SLOT_SHARE = 8
"""Without --slots a frequency plan holds one expert in this many in the fast tier."""


def plan_for(
    trace: Trace,
    path: str | Path | None = None,
    *,
    slots: int | None = None,
    policy: str | None = None,
    default_to_shipped: bool = False,
) -> Plan:
    """The plan for ``trace``.

    ``path`` wins over ``slots`` (both together are refused). Without either, the plan that ships is
    taken where ``default_to_shipped``, else a frequency plan of E / 8 slots in each layer. ``policy``
    replaces the policy of the dynamic slots with its default parameters. Raises ``ValueError`` where
    the plan is for another model or a name is unknown.
    """
    if path is not None and slots is not None:
        raise ValueError("got both --plan and --slots, expected one: a plan already says its slots")
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"policy is {policy}, expected one of {', '.join(sorted(POLICIES))}")
    header = trace.header
    if slots is not None and not 0 < slots <= header.num_experts:
        raise ValueError(f"--slots is {slots}, expected 1 to {header.num_experts}, the experts of a layer")
    if path is None and slots is None and default_to_shipped:
        path = shipped("nano/plan.json")
    if path is not None:
        plan = Plan.load(path)
    else:
        plan = PLANNERS["frequency"](trace, slots_per_layer=slots or max(1, header.num_experts // DEFAULT_SLOT_SHARE))
    plan.check_matches(
        what="trace", model=header.model, num_layers=header.num_layers, num_experts=header.num_experts,
        top_k=header.top_k, fingerprint=header.model_fingerprint,
    )  # fmt: skip
    if policy is not None:
        # The prediction was the other policy's.
        plan = plan.model_copy(update={"policy": PolicyChoice(name=policy), "prediction": {}})
    return plan


def scored_part(trace: Trace, plan: Plan) -> tuple[Trace, str]:
    """The requests that a plan may be scored on, and what they are.

    A plan made on this very trace is scored on the requests that it has not seen, where it kept some.
    """
    if plan.fingerprints.get("trace") != trace.fingerprint():
        return trace, "every request; the plan was made on another trace"
    held_out = plan.planner.get("held_out_requests")
    if held_out:
        return trace.requests(held_out), f"{len(held_out)} held-out requests"
    return trace, "every request, in sample: the plan has seen them"


def policy_label(plan: Plan) -> str:
    """The policy's name; an oracle, which sees the future, says so."""
    oracle = " (oracle)" if POLICIES[plan.policy.name].needs_next_use else ""
    return plan.policy.name + oracle
