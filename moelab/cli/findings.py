"""``moelab findings [TRACE ...] --out PAGE``: which policy reads least on each trace; writes the tables of a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelab.cli.output import print_json
from moelab.cli.trace_arguments import load_trace

if TYPE_CHECKING:
    from moelab.findings import Study

HELP = "every policy on several traces, held out, with intervals and oracles: the tables of docs/findings.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "traces",
        metavar="TRACE",
        nargs="*",
        help="trace folders or foreign files (default: the two captures that ship)",
    )
    parser.add_argument("--out", metavar="FILE", help="page whose tables are replaced (default: print them)")
    parser.add_argument(
        "--samples", type=int, default=10_000, metavar="B", help="resamples of requests (default: 10000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the folds and the resamples")


def run(options: argparse.Namespace) -> None:
    from moelab.findings import study, update_page
    from moelab.findings.page import tables
    from moelab.store import shipped

    if options.samples < 100:
        raise ValueError(f"--samples is {options.samples}, expected at least 100: intervals need their tails")
    if options.out and not Path(options.out).resolve().parent.is_dir():
        raise ValueError(f"--out is {options.out}, but its folder does not exist: create it or choose another path")
    paths = options.traces or [shipped("nano/capture"), shipped("nano/capture_batch8")]
    traces = [load_trace(str(path)) for path in paths]  # all are read before the first minute
    studies = [
        study(
            name, trace, source=_note(path), num_samples=options.samples, seed=options.seed, progress=not options.json
        )
        for path, name, trace in zip(paths, _names(paths), traces, strict=True)
    ]
    if options.out:
        update_page(studies, options.out)
    if options.json:
        print_json({"traces": [_document(each) for each in studies]})
    elif options.out:
        print(f"tables of {len(studies)} traces: {options.out}")
    else:
        print(tables(studies))


def _names(paths: list) -> list[str]:
    """The last part of each path, or the whole path where two would be the same.

    Raises ``ValueError`` for a path that is given twice.
    """
    resolved = [Path(path).resolve() for path in paths]
    if twice := [str(path) for path, whole in zip(paths, resolved, strict=True) if resolved.count(whole) > 1]:
        raise ValueError(f"got {twice[0]} more than once, expected each trace once: leave the second out")
    names = [_name(Path(path)) for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _name(path: Path) -> str:
    name = path.parent.name if path.is_file() else path.name
    return f"{path.resolve().parent.name}/{name}" if name.startswith("capture") else name


def _note(path: str | Path) -> str | None:
    """Heading of the NOTE.md beside a trace, which says source and licence; ``None`` without one."""
    path = Path(path)
    note = (path.parent if path.is_file() else path) / "NOTE.md"
    return note.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") if note.is_file() else None


def _document(study: Study) -> dict[str, Any]:
    header = study.trace.header
    return {
        "name": study.name, "model": header.model, "synthetic": header.synthetic, "licence": header.licence,
        "steps": study.steps, "held_out": study.held_out, "tokens": study.num_tokens, "clusters": study.num_clusters,
        "rows": study.table(), "reads_on_first_steps": study.on_first,
    }  # fmt: skip
