"""--plan, or --policy with --slots, of the commands that run the engine: its fast tier, and what it did."""

from __future__ import annotations

import argparse
from typing import Any

from moelab.cli.output import print_rows


def add_fast_tier(parser: argparse.ArgumentParser) -> None:
    """--plan, --policy, --slots, --slot-format, --late."""
    parser.add_argument("--plan", metavar="FILE", help="run under this plan's fast tier")
    parser.add_argument("--slots", type=int, metavar="N", help="instead of a plan: N slots a layer, empty at first")
    parser.add_argument("--policy", metavar="NAME", help="policy of --slots (default: lru), or instead of the plan's")
    parser.add_argument("--slot-format", metavar="F", help="of --slots: int4_g32, bf16, float32 (default: the home's)")
    parser.add_argument(
        "--late", choices=("home", "wait", "never"), default="home",
        help="where a hit runs whose copy is under way (default: home); never: a tier on paper, nothing is copied",
    )  # fmt: skip


def use_fast_tier(engine: Any, options: argparse.Namespace) -> None:
    """Give the engine what the options ask for. ValueError where they contradict each other."""
    from moelab.domain.plan import Plan, PolicyChoice
    from moelab.planner import empty
    from moelab.policies import POLICIES

    if options.plan and (options.slots is not None or options.slot_format):
        raise ValueError("got --plan and --slots or --slot-format, expected one: each says the room of the fast tier")
    if not options.plan and options.slots is None:
        if options.policy or options.slot_format:
            raise ValueError("got --policy or --slot-format without a fast tier: give --plan FILE or --slots N")
        return
    if options.policy and options.policy not in POLICIES:
        raise ValueError(f"--policy is {options.policy}, expected one of {', '.join(sorted(POLICIES))}")
    if options.plan:
        plan = Plan.load(options.plan)
        if options.policy:  # the prediction was the other policy's
            plan = plan.model_copy(update={"policy": PolicyChoice(name=options.policy), "prediction": {}})
    else:
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
