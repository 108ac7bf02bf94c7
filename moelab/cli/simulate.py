"""``moelab simulate TRACE``: replay the routing against a fast tier, without executing anything."""

from __future__ import annotations

import argparse

from moelab.cli.output import print_json, print_rows
from moelab.cli.trace_arguments import add_machine, add_phase, add_trace, load_trace

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
    from moelab.execution.planned import plan_for
    from moelab.simulator.simulate import simulate

    trace = load_trace(options.trace, options.phase)
    plan = plan_for(
        trace, options.plan, slots=options.slots, policy=options.policy, default_to_shipped=not options.trace
    )
    machine = None
    if options.machine:
        from moelab.calibrate import resolve_machine

        machine = resolve_machine(options.machine)
    result = simulate(trace, plan, machine)
    if options.json:
        print_json(result.summary())
    else:
        title = f"{trace.header.model}, {trace.num_tokens:,} tokens ({options.phase})"
        if trace.header.synthetic:
            title += ", synthetic routing"
        print_rows(title, result.summary())
