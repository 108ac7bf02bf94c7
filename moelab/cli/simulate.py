"""``moelab simulate TRACE``: replay the routing against a fast tier, without executing anything."""

from __future__ import annotations

import argparse

from moelab.cli.output import print_json, print_rows
from moelab.cli.trace_arguments import add_machine, add_phase, add_trace, check_phase, load_trace

HELP = "simulate a trace under a plan: hits, reads, uploads, predicted time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trace(parser, optional=True)
    add_phase(parser, "all")
    add_machine(parser)
    parser.add_argument("--plan", metavar="FILE", help="a plan file (default: a frequency plan of --slots)")
    parser.add_argument("--policy", metavar="NAME", help="policy of the dynamic slots, instead of the plan's")
    parser.add_argument(
        "--slots", type=int, metavar="N", help="slots of the fast tier per layer, instead of the plan's"
    )


def run(options: argparse.Namespace) -> None:
    from moelab.calibrate import resolve_machine
    from moelab.execution.planned import plan_for, policy_label, scored_part
    from moelab.simulator.simulate import simulate

    trace = load_trace(options.trace)
    phase = check_phase(trace, options.phase)
    plan = plan_for(
        trace, options.plan, slots=options.slots, policy=options.policy, default_to_shipped=not options.trace
    )
    machine = resolve_machine(options.machine)
    efficiency = next(iter(machine.kernel_efficiency.values()), 1.0)
    scored, scored_on = scored_part(trace, plan)
    result = simulate(scored, plan, machine, phase=phase, efficiency=efficiency, progress=not options.json)
    summary = {**result.summary(), "policy": policy_label(plan), "scored_on": scored_on}
    if options.json:
        print_json(summary)
    else:
        title = f"{trace.header.model}, {scored.num_tokens:,} tokens ({options.phase})"
        if trace.header.synthetic:
            title += ", synthetic routing"
        print_rows(title, summary)
