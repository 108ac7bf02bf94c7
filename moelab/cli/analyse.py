"""``moelab analyse TRACE``: popularity, reuse, co-activation and stability of a trace, with intervals."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from moelab.cli.output import check_report, print_json, print_rows, print_table
from moelab.cli.trace_arguments import add_phase, add_trace, check_phase, load_trace

if TYPE_CHECKING:
    from moelab.analysis import Analysis
    from moelab.domain.counts import CountsTable
    from moelab.domain.trace import Trace

HELP = "popularity, reuse, co-activation and stability of a trace, with intervals"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trace(parser, optional=True)
    add_phase(parser, "all")
    parser.add_argument("--windows", type=int, default=8, metavar="N", help="windows to compare in time (default: 8)")
    parser.add_argument(
        "--samples", type=int, default=400, metavar="B", help="resamples of the bootstrap over requests (default: 400)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, the splits and the shuffles")
    parser.add_argument("--report", metavar="FILE", help="also write a self-contained HTML page with pictures")


def run(options: argparse.Namespace) -> None:
    from moelab.analysis import analyse

    check_report(options.report)
    source = _load(options.trace)
    result = analyse(
        source, phase=_phase(source, options.phase), num_windows=options.windows, num_samples=options.samples,
        seed=options.seed, progress=not options.json,
    )  # fmt: skip
    if options.report:
        from moelab.html_report import report_analysis

        report_analysis(result, source, options.report)
    if options.json:
        print_json(result.to_dict())
        return
    _print(result)
    if options.report:
        print(f"report: {options.report}")


def _load(path: str | None) -> Trace | CountsTable:
    """Counts where a count format matches, else the trace."""
    from moelab.sources import read_counts

    counts = read_counts(path) if path else None
    return counts if counts is not None else load_trace(path)


def _phase(source: Trace | CountsTable, phase: str) -> str | None:
    from moelab.domain.counts import CountsTable

    if isinstance(source, CountsTable):
        return None if phase == "all" else phase
    return check_phase(source, phase)


def _print(result: Analysis) -> None:
    head = {name: value for name, value in result.head().items() if value not in (None, []) and name != "notes"}
    print_rows(f"{result.model}, {result.routing} routing", head)
    for note in result.notes:
        print(f"  note: {note}")
    frame = result.to_frame()
    for part in frame.part.unique():
        rows = frame[frame.part == part].drop(columns=["part"])
        print_table(f"{part} ({result.routing})", rows)
