"""``moelab sweep TRACE --policies .. --capacities .. --out FOLDER``: many policies at many capacities, resumable."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from moelab.cli.output import check_report, print_json, print_table
from moelab.cli.trace_arguments import add_phase, add_trace, check_step_phase, load_trace

if TYPE_CHECKING:
    from moelab.domain.plan import PolicyChoice

HELP = "simulate many policies at many capacities; rows are kept, so it can be stopped and go on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trace(parser)
    add_phase(parser, "all", of_steps=True)
    parser.add_argument(
        "--policies", nargs="+", required=True, metavar="NAME",
        help="policies, each with parameters after a colon if wanted, such as ema_lfu:decay=0.99,hysteresis=0.2",
    )  # fmt: skip
    parser.add_argument(
        "--capacities", nargs="+", required=True, metavar="SLOTS",
        help="slots of the fast tier (see --scope), or shares of the experts such as 5%%",
    )  # fmt: skip
    parser.add_argument(
        "--scope", choices=("layer", "global"), default="layer", help="slots for each layer (default) or over all"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the rows are kept and found again")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786 (extra: sweep)"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="also write a self-contained HTML page with pictures (adds the oracles)"
    )


def run(options: argparse.Namespace) -> None:
    from moelab.sweeps import sweep

    check_report(options.report)
    policies = [policy_of(text) for text in options.policies]
    capacities = [capacity_of(text) for text in options.capacities]
    trace = load_trace(options.trace)
    result = sweep(
        trace, policies, capacities, scope=options.scope, out=options.out, scheduler=options.scheduler,
        phase=check_step_phase(trace, options.phase), oracles=bool(options.report),
        progress=not options.json,
    )  # fmt: skip
    if options.report:
        from moelab.html_report import report_sweep

        report_sweep(result, options.report)
    if options.json:
        print_json({"computed": result.num_computed, "known": result.num_known, "rows": result.table()})
        return
    wide = result.reads().reset_index()
    print_table(result.title, wide.rename(columns=str))
    for policy, lacks in {row["policy"]: row["policy_lacks"] for row in result.rows if row["policy_lacks"]}.items():
        print(f"{policy}: {lacks}")
    print(f"{result.num_computed} rows computed, {result.num_known} were in {options.out}")
    if options.report:
        print(f"report: {options.report}")


def policy_of(text: str) -> PolicyChoice:
    """``NAME`` or ``NAME:key=value,...``; raises ``ValueError`` for another form."""
    from moelab.domain.plan import PolicyChoice

    name, _, rest = text.partition(":")
    parameters: dict[str, float | int] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            parameters[key] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            raise ValueError(f"policy {text}: got {part!r}, expected key=number: write {name}:key=number") from None
    return PolicyChoice(name=name, parameters=parameters)


def capacity_of(text: str) -> int | float:
    """Slots, or a share with %; raises ``ValueError`` for another form."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else int(text)
    except ValueError:
        raise ValueError(f"capacity is {text!r}, expected slots such as 40, or a share such as 5%") from None
