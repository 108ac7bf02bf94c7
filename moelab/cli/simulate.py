"""``moelab simulate TRACE``: replay the routing against a fast tier, without executing anything."""

from __future__ import annotations

import argparse

from moelab.cli.output import check_report, print_json, print_rows
from moelab.cli.trace_arguments import add_machine, add_phase, add_trace, check_step_phase, load_trace

HELP = "simulate a trace under a plan: hits, reads, uploads, predicted time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trace(parser, optional=True)
    add_phase(parser, "all", of_steps=True)
    add_machine(parser)
    parser.add_argument("--plan", metavar="FILE", help="a plan file (default: a frequency plan of --slots)")
    parser.add_argument("--policy", metavar="NAME", help="policy of the dynamic slots, instead of the plan's")
    parser.add_argument(
        "--slots", type=int, metavar="N", help="instead of a plan: the hottest experts in N slots (see --scope)"
    )
    parser.add_argument(
        "--bytes", metavar="SIZE", help="instead of a plan: a fast tier of SIZE in all, such as 4000MiB, empty at first"
    )
    parser.add_argument(
        "--scope", choices=("layer", "global"), help="of --slots and --bytes: room for each layer (default) or shared"
    )
    parser.add_argument(
        "--overflow", action="store_true", help="fill on demand beyond the room, evict after the request"
    )
    parser.add_argument(
        "--check-residency",
        action="store_true",
        help="compare with the residency that the engine recorded, every row of the trace",
    )
    parser.add_argument(
        "--lossy-cache-bias", type=float, default=0.0, metavar="B",
        help="LOSSY, an estimate on recorded scores: the router prefers residents by B times the range of its scores",
    )  # fmt: skip
    parser.add_argument(
        "--lossy-deferred", type=int, default=0, metavar="D",
        help="LOSSY: predict the time with the D last experts of a token computed beside the next layer; needs a "
        "machine with a fast tier",
    )  # fmt: skip
    parser.add_argument("--report", metavar="FILE", help="also write a self-contained HTML page with pictures")


def run(options: argparse.Namespace) -> None:
    from moelab.calibration import resolve_machine
    from moelab.domain.lossy import Lossy
    from moelab.domain.units import parse_bytes
    from moelab.execution.planned import plan_for, policy_label, scored_part
    from moelab.simulator import check_residency, simulate

    check_report(options.report)
    trace = load_trace(options.trace)
    phase = check_step_phase(trace, options.phase)
    plan = plan_for(
        trace, options.plan, slots=options.slots, capacity_bytes=parse_bytes(options.bytes) if options.bytes else None,
        scope=options.scope, overflow=options.overflow, policy=options.policy, default_to_shipped=not options.trace,
    )  # fmt: skip
    machine = resolve_machine(options.machine)
    scored, scored_on = scored_part(trace, plan)
    knows_bytes = 0 not in plan.format_of_tier["node0"].expert_bytes
    num_nodes = sum(tier.startswith("node") for tier in plan.tiers)
    # A machine that was asked for is refused by name; this one, by default, just cannot say.
    fits = num_nodes in (1, len(machine.nodes)) or bool(options.machine)
    lossy = None
    if options.lossy_cache_bias or options.lossy_deferred:
        lossy = Lossy(options.lossy_cache_bias, num_deferred=options.lossy_deferred)
    result = simulate(
        scored, plan, machine if knows_bytes and fits else None, phase=phase, log=options.check_residency, lossy=lossy,
        progress=not options.json,
    )  # fmt: skip
    summary = {**result.summary(), "policy": policy_label(plan), "scored_on": scored_on}
    if not knows_bytes:
        summary["prediction"] = "nothing: neither trace nor plan says the bytes of an expert"
    elif not fits:
        summary["prediction"] = f"nothing: the plan has {num_nodes} nodes, this machine {len(machine.nodes)}: --machine"
    if options.check_residency:
        summary |= check_residency(scored, plan, result).summary()
    if options.report:
        from moelab.html_report import report_simulation

        report_simulation(result, scored, plan, options.report)
    if options.json:
        print_json(summary)
    else:
        title = f"{trace.header.model}, {scored.num_tokens:,} tokens ({options.phase})"
        if trace.header.synthetic:
            title += ", synthetic routing"
        print_rows(title, summary)
        if options.report:
            print(f"report: {options.report}")
