"""``moelab replay [TRACE]``: simulate, predict, then really execute the routed experts on this machine."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from moelab.cli.output import check_report, print_json
from moelab.cli.trace_arguments import add_machine, add_phase, add_trace, check_phase, load_trace

if TYPE_CHECKING:
    from moelab.execution.prediction import Prediction

HELP = "really execute the routed experts of a trace on this machine, prediction beside measurement"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trace(parser, optional=True)
    add_phase(parser, "decode")
    add_machine(parser)
    parser.add_argument("--plan", metavar="FILE", help="a plan file (default: the one that ships, or a frequency plan)")
    parser.add_argument("--policy", metavar="NAME", help="policy of the dynamic slots, instead of the plan's")
    parser.add_argument(
        "--slots", type=int, metavar="N", help="instead of a plan: a frequency plan of N slots per layer"
    )
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens to run (default: as many as about 10 s take)")
    parser.add_argument(
        "--virtual-nodes", type=int, metavar="N",
        help="divide cores and memory into N nodes, marked as virtual (default: the plan's, where it has more)",
    )  # fmt: skip
    parser.add_argument("--isa", metavar="NAME", help="numba, generic, avx2, avx512, amx (default: the fastest here)")
    parser.add_argument("--activation", choices=("f32", "bf16", "int8"), help="activation mode (default: int8)")
    parser.add_argument(
        "--expert-shape", metavar="NAME|own", help="model preset of row (b) (default: kimi-k2.6), or own: row (a) alone"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="checkpoint of the recorded model (default: nano for its traces)"
    )
    parser.add_argument(
        "--uniform", metavar="NAME", help="instead of TRACE: seeded uniform routing of a model preset, synthetic"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of --uniform")
    parser.add_argument("--report", metavar="FILE", help="also write a self-contained HTML page with pictures")


def run(options: argparse.Namespace) -> None:
    from moelab.calibration import resolve_machine
    from moelab.execution.planned import plan_for, policy_label
    from moelab.execution.replay import replay

    if options.uniform and options.trace:
        raise ValueError("got both TRACE and --uniform, expected one")
    check_report(options.report)
    if options.uniform:
        from moelab.execution.uniform import uniform_trace

        trace = uniform_trace(options.uniform, seed=options.seed)
        trace_name = f"uniform routing of {options.uniform}, synthetic, seed {options.seed}"
    else:
        trace = load_trace(options.trace)
        trace_name = f"{options.trace or 'nano capture (shipped)'}, {options.phase}"
    use_shipped = not options.trace and not options.uniform
    plan = plan_for(trace, options.plan, slots=options.slots, policy=options.policy, default_to_shipped=use_shipped)
    machine = resolve_machine(options.machine, isa=options.isa, activation=options.activation or "int8")
    result = replay(
        trace,
        plan,
        phase=check_phase(trace, options.phase),
        machine=machine,
        model_dir=options.model,
        tokens=options.tokens,
        isa=options.isa,
        activation=options.activation,
        virtual_nodes=options.virtual_nodes,
        expert_shape=options.expert_shape or options.uniform,
        trace_name=trace_name,
        plan_name=f"{options.plan}, {policy_label(plan)}" if options.plan else None,
        progress=not options.json and sys.stderr.isatty(),
        on_prediction=_say_prediction,
    )
    if options.report:
        from moelab.html_report import report

        report(result, trace, plan, options.report)
    if options.json:
        print_json(result.to_dict())
        return
    print(result)
    print(f"machine: {machine.cpu or machine.name}, {machine.source}; {result.seconds:.0f} s in all")
    if options.report:
        print(f"report: {options.report}")


def _say_prediction(name: str, prediction: Prediction) -> None:
    """On standard error, before the row is measured; ``--json`` carries it with its time as well."""
    row = {"own": "(a)", "expert_shape": "(b)"}[name]
    text = f"predicted at {prediction.made_at}: {row} {prediction.ms_per_token():.3f} ms/token"
    if prediction.calibrated is not None:
        text += f", {prediction.calibrated.ms_per_token():.3f} by calibrated times"
    print(text, file=sys.stderr)
