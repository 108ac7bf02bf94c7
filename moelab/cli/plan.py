"""``moelab plan TRACE --planner NAME --slots N --out PLAN``: find a placement and write it down."""

from __future__ import annotations

import argparse
from pathlib import Path

from moelab.cli.output import print_json, print_rows
from moelab.cli.trace_arguments import add_machine, add_phase, add_trace, check_phase, load_trace

HELP = "find a placement for a trace and write the plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trace(parser)
    add_phase(parser, "decode")
    add_machine(parser)
    parser.add_argument("--planner", default="frequency", metavar="NAME", help="default: frequency")
    parser.add_argument("--slots", type=int, required=True, metavar="N", help="slots of the fast tier per layer")
    parser.add_argument(
        "--held-out", type=float, default=0.25, metavar="F", help="share of the requests to score on (default: 0.25)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--out", required=True, metavar="PLAN", help="the plan file to write")


def run(options: argparse.Namespace) -> None:
    from moelab.calibrate import resolve_machine
    from moelab.planner import PLANNERS

    if options.planner not in PLANNERS:
        raise ValueError(f"planner is {options.planner}, expected one of {', '.join(PLANNERS)}")
    if not Path(options.out).resolve().parent.is_dir():
        raise ValueError(f"--out is {options.out}, but its folder does not exist: create it or choose another path")
    trace = load_trace(options.trace)
    plan = PLANNERS[options.planner](
        trace,
        slots_per_layer=options.slots,
        held_out=options.held_out,
        seed=options.seed,
        phase=check_phase(trace, options.phase),
        machine=resolve_machine(options.machine),
    )
    plan.save(options.out)
    if options.json:
        print_json({"plan": options.out, "planner": plan.planner, **plan.prediction})
    else:
        print_rows(f"plan written to {options.out}", plan.summary())
