"""Which plan a simulation or replay runs under: a file, the one that ships, an empty tier or a frequency plan.

Knows the order of precedence and says which was taken in ``Plan.planner``. Floor 4.
"""

from __future__ import annotations

from pathlib import Path

from moelab.domain.plan import Plan, PolicyChoice
from moelab.domain.trace import Trace
from moelab.planner import PLANNERS, empty
from moelab.policies import POLICIES
from moelab.store import shipped

SCOPES = ("layer", "global")
"""Whether each layer has its own room in the fast tier, or all layers share it."""

DEFAULT_SLOT_SHARE = 8
"""Without --slots a frequency plan holds one expert in this many in the fast tier."""


def plan_for(
    trace: Trace,
    path: str | Path | None = None,
    *,
    slots: int | None = None,
    capacity_bytes: int | None = None,
    scope: str | None = None,
    overflow: bool = False,
    policy: str | None = None,
    default_to_shipped: bool = False,
) -> Plan:
    """The plan for ``trace``: of ``path``, ``slots`` and ``capacity_bytes`` at most one is given.

    ``slots``: a frequency plan of so many in each layer, or over all layers with ``scope`` ``global``.
    ``capacity_bytes``: a fast tier of that size that holds nothing beforehand, one pool (``global``) or the same
    bytes for every layer; the policy (``lru`` by default) fills it. ``overflow``: that policy fills on
    demand though what is in use exceeds the room. Without any of the three, the plan that ships is
    taken where ``default_to_shipped``, else a frequency plan of E / 8 slots in each layer. ``policy``
    replaces the policy of the dynamic slots with its default parameters. Raises ``ValueError`` where
    the plan is for another model or a name is unknown.
    """
    _check_one_source(path, slots, capacity_bytes, scope)
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"policy is {policy}, expected one of {', '.join(sorted(POLICIES))}")
    header = trace.header
    most = header.num_experts * (header.num_layers if scope == "global" else 1)
    if slots is not None and not 0 < slots <= most:
        raise ValueError(f"--slots is {slots}, expected 1 to {most}, the experts of {SLOT_RANGE[scope or 'layer']}")
    if path is None and slots is None and capacity_bytes is None and default_to_shipped:
        path = shipped("nano/plan.json")
    if path is not None:
        plan = Plan.load(path)
    elif capacity_bytes is not None:
        plan = _empty_tier(trace, capacity_bytes, scope or "layer", policy or "lru")
    elif slots is not None and scope == "global":
        plan = PLANNERS["frequency"](trace, slots=slots)
    else:
        plan = PLANNERS["frequency"](trace, slots_per_layer=slots or max(1, header.num_experts // DEFAULT_SLOT_SHARE))
    plan.check_matches(
        what="trace", model=header.model, num_layers=header.num_layers, num_experts=header.num_experts,
        top_k=header.top_k, fingerprint=header.model_fingerprint,
    )  # fmt: skip
    if policy is not None or overflow:
        # The prediction was the other policy's.
        choice = plan.policy if policy is None else PolicyChoice(name=policy)
        if overflow:
            choice = choice.model_copy(update={"parameters": {**choice.parameters, "overflow": 1}})
        plan = plan.model_copy(update={"policy": choice, "prediction": {}})
    return plan


SLOT_RANGE = {"layer": "a layer", "global": "all layers"}


def _check_one_source(
    path: str | Path | None, slots: int | None, capacity_bytes: int | None, scope: str | None
) -> None:
    given = [
        name for name, value in (("--plan", path), ("--slots", slots), ("--bytes", capacity_bytes)) if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"got both {' and '.join(given)}, expected one: each says the room of the fast tier")
    if scope is not None and scope not in SCOPES:
        raise ValueError(f"--scope is {scope}, expected {' or '.join(SCOPES)}")
    if scope is not None and given not in (["--slots"], ["--bytes"]):
        raise ValueError(f"--scope is {scope}, but no --slots or --bytes for it to share out: give one of them")


def _empty_tier(trace: Trace, capacity_bytes: int, scope: str, policy: str) -> Plan:
    """An empty fast tier of ``capacity_bytes`` in all; by layer, each gets the slots that its share holds."""
    if not POLICIES[policy].fills:
        raise ValueError(f"policy {policy} fills no slot, so an empty tier stays empty: give --slots or --plan instead")
    if scope == "global":
        return empty(trace, capacity_bytes=capacity_bytes, policy=policy)
    header = trace.header
    if 0 in header.expert_bytes:
        raise ValueError(
            f"--bytes is {capacity_bytes}, but the trace of {header.model} does not say the bytes of an expert: "
            "give --slots"
        )
    share = capacity_bytes // header.num_layers
    slots = tuple(min(header.num_experts, share // each) for each in header.expert_bytes)
    return empty(trace, slots_per_layer=slots, policy=policy)


def scored_part(trace: Trace, plan: Plan) -> tuple[Trace, str]:
    """The requests that a plan may be scored on, and what they are.

    A plan made on this very trace is scored on the requests that it has not seen, where it kept some.
    """
    if plan.planner.get("name") == "empty":
        return trace, "every request; the fast tier was empty at first"
    if not trace.has_fingerprint(plan.fingerprints.get("trace")):
        return trace, "every request; the plan was made on another trace"
    held_out = plan.planner.get("held_out_requests")
    if held_out:
        return trace.requests(held_out), f"{len(held_out)} held-out requests"
    return trace, "every request, in sample: the plan has seen them"


def policy_label(plan: Plan) -> str:
    """The policy's name; an oracle, which sees the future, says so."""
    oracle = " (oracle)" if POLICIES[plan.policy.name].needs_next_use else ""
    return plan.policy.name + oracle
