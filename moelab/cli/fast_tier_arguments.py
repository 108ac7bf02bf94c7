"""--plan, or --policy with --slots, of the commands that run the engine: homes, fast tier, and what it did."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from moelab.cli.output import print_rows

if TYPE_CHECKING:
    from moelab.domain.plan import Plan


def add_fast_tier(parser: argparse.ArgumentParser) -> None:
    """--plan, --policy, --slots, --slot-format, --late."""
    parser.add_argument("--plan", metavar="FILE", help="load experts where this plan has them, with its fast tier")
    parser.add_argument(
        "--virtual-nodes", type=int, metavar="N",
        help="divide the cores into N nodes (default: those of the plan, where it has more than the machine)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-unbound", action="store_true", help="run a plan where the system does not bind memory to real nodes"
    )
    parser.add_argument("--slots", type=int, metavar="N", help="instead of a plan: N slots a layer, empty at first")
    parser.add_argument("--policy", metavar="NAME", help="policy of --slots (default: lru), or instead of the plan's")
    parser.add_argument("--slot-format", metavar="F", help="of --slots: int4_g32, bf16, float32 (default: the home's)")
    parser.add_argument(
        "--late", choices=("home", "wait", "never"), default="home",
        help="where a hit runs whose copy is under way (default: home); never: a tier on paper, nothing is copied",
    )  # fmt: skip


def plan_of(options: argparse.Namespace) -> Plan | None:
    """The plan to load with, with the policy that was asked for. ValueError where the options contradict each other."""
    from moelab.domain.plan import Plan, PolicyChoice

    if options.plan and (options.slots is not None or options.slot_format):
        raise ValueError("got --plan and --slots or --slot-format, expected one: each says the room of the fast tier")
    if not options.plan and options.slots is None and (options.policy or options.slot_format):
        raise ValueError("got --policy or --slot-format without a fast tier: give --plan FILE or --slots N")
    if options.policy:
        from moelab.policies import POLICIES

        if options.policy not in POLICIES:
            raise ValueError(f"--policy is {options.policy}, expected one of {', '.join(sorted(POLICIES))}")
    if not options.plan:
        return None
    plan = Plan.load(options.plan)
    if options.policy:  # the prediction was the other policy's
        plan = plan.model_copy(update={"policy": PolicyChoice(name=options.policy), "prediction": {}})
    return plan


def use_slots(engine: Any, options: argparse.Namespace) -> None:
    """Give the engine the empty tier of --slots, where it was asked for."""
    from moelab.planner import empty
    from moelab.policies import POLICIES

    if options.slots is None:
        return
    policy, most = options.policy or "lru", engine.spec.n_routed_experts
    if not POLICIES[policy].fills:
        raise ValueError(f"policy {policy} fills no slot, so an empty tier stays empty: give --plan, not --slots")
    if not 0 < options.slots <= most:
        raise ValueError(f"--slots is {options.slots}, expected 1 to {most}, the experts of a layer")
    fast = engine.slot_format(options.slot_format) if options.slot_format else None
    plan = empty(engine.trace_header(), slots_per_layer=options.slots, policy=policy, fast_format=fast)
    engine.use_plan(plan, late=options.late)


def fast_tier_summary(engine: Any) -> dict[str, Any] | None:
    """What the tier did, `None` without one."""
    return None if engine.fast_tier is None else engine.fast_tier.report().summary()


def print_fast_tier(engine: Any) -> None:
    """The same for people, where there is one."""
    if (summary := fast_tier_summary(engine)) is not None:
        rows = {name.replace("_", " "): value for name, value in summary.items()}
        print_rows("fast tier" + (", emulated on the CPU" if summary["emulated"] else ""), rows)
