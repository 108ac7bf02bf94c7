"""``moelab findings [TRACE ...] --out PAGE``: which policy reads least on each trace; writes the tables of a page.

With ``--placement``: every planner of NUMA nodes instead, the tables of docs/placement.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelab.cli.output import print_json
from moelab.cli.trace_arguments import load_trace

if TYPE_CHECKING:
    from moelab.domain.trace import Trace
    from moelab.findings import Study
    from moelab.findings.placement_study import PlacementStudy

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
    parser.add_argument("--placement", action="store_true", help="planners of NUMA nodes instead of policies")
    parser.add_argument("--nodes", type=int, nargs="+", metavar="N", help="with --placement: NUMA nodes (default: 2)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="S", help="with --placement: of the splits (default: 0 1 2)"
    )
    parser.add_argument(
        "--certificate-steps", type=int, metavar="S", help="with --placement: of each proof, up to 256 (default: 128)"
    )
    parser.add_argument(
        "--certificate", type=float, metavar="SECONDS", help="with --placement: limit of each proof (default: 60)"
    )


def run(options: argparse.Namespace) -> None:
    from moelab.store import shipped

    if options.samples < 100:
        raise ValueError(f"--samples is {options.samples}, expected at least 100: intervals need their tails")
    if options.out and not Path(options.out).resolve().parent.is_dir():
        raise ValueError(f"--out is {options.out}, but its folder does not exist: create it or choose another path")
    if not options.placement and (options.nodes or options.certificate or options.certificate_steps or options.seeds):
        raise ValueError(
            "--nodes, --seeds, --certificate and --certificate-steps belong to --placement: add it, or leave them out"
        )
    paths = options.traces or [shipped("nano/capture"), shipped("nano/capture_batch8")]
    traces = [load_trace(str(path)) for path in paths]  # all are read before the first minute
    page = _placement_page(options) if options.placement else _policy_page(options)
    studies: list[Any] = []
    for each in page.studies(list(zip(paths, _names(paths), traces, strict=True))):
        studies.append(each)
        if options.out:
            page.update(studies, options.out)  # what is done stays, whatever stops the rest
    if options.json:
        print_json({page.key: [page.document(each) for each in studies]})
    elif options.out:
        print(f"tables of {len(studies)} {page.key}: {options.out}")
    else:
        print(page.tables(studies))


@dataclass(frozen=True)
class _Page:
    """One of the two pages: ``studies`` of (path, name, trace) one after the other, and what is made of them."""

    key: str
    studies: Callable[[list[tuple[Any, str, Trace]]], Iterator[Any]]
    update: Callable[[list, str], Any]
    tables: Callable[[list], str]
    document: Callable[[Any], dict[str, Any]]


def _policy_page(options: argparse.Namespace) -> _Page:
    from moelab.findings import study, update_page
    from moelab.findings.page import tables

    def studies(traces: list[tuple[Any, str, Trace]]) -> Iterator[Study]:
        for path, name, trace in traces:
            yield study(
                name, trace, source=_note(path), num_samples=options.samples, seed=options.seed,
                progress=not options.json,
            )  # fmt: skip

    return _Page("traces", studies, update_page, tables, _document)


def _placement_page(options: argparse.Namespace) -> _Page:
    from moelab.findings.placement_page import placement_tables, update_placement_page
    from moelab.findings.placement_study import CERTIFICATE_STEPS, SEEDS, placement_study

    def studies(traces: list[tuple[Any, str, Trace]]) -> Iterator[PlacementStudy]:
        for nodes in options.nodes or [2]:
            for _, name, trace in traces:
                yield placement_study(
                    name, trace, num_nodes=nodes, seeds=options.seeds or SEEDS,
                    certificate_s=60.0 if options.certificate is None else options.certificate,
                    certificate_steps=options.certificate_steps or CERTIFICATE_STEPS,
                    tell=lambda text: None if options.json else print(text, file=sys.stderr),
                )  # fmt: skip

    return _Page("studies", studies, update_placement_page, placement_tables, _placed_document)


def _placed_document(study: PlacementStudy) -> dict[str, Any]:
    rows = [
        {
            "planner": one.planner, "extra_memory": one.extra_memory, "heldout_mean_max": one.score.mean,
            "heldout_mean_max_interval": one.score.interval(), "heldout_ratio_to_ideal": one.score.ratio,
            "train_ratio_to_ideal": one.in_sample_ratio, "seconds": one.plan.prediction["seconds"],
        }
        for one in study.placed.values()
    ]  # fmt: skip
    return {
        "name": study.name, "synthetic": study.trace.header.synthetic, "nodes": study.num_nodes, "steps": study.steps,
        "rows": rows, "certificates": {str(share): asdict(proof) for share, proof in study.certificates.items()},
        "joint": [
            {
                "seed": one.seed, "split": one.split, "extra_memory": one.offered, "fast_slots": one.slots,
                "heldout_mean_max": {way: score.mean for way, score in one.scores.items()},
                "hit_rate_per_request": one.hit_rates, "joint_minus_sequential": one.difference,
                "verdict": one.verdict,
            }
            for one in study.joint
        ],
        "full_budget": [
            {
                "seed": one.seed, "split": one.split, "extra_memory_on_offer": one.offered, "extra_memory": one.held,
                "eplb_extra_memory": one.eplb_held, "chosen": one.chosen, "ours_ratio_to_ideal": one.ours.ratio,
                "ours_train_ratio_to_ideal": one.in_sample, "eplb_ratio_to_ideal": one.eplb.ratio,
                "ours_minus_eplb": one.difference, "verdict": one.verdict,
            }
            for one in study.full
        ],
        "equal_bytes": [
            {
                "seed": one.seed, "split": one.split, "extra_memory_on_offer": one.offered, "extra_memory": one.held,
                "chosen": one.chosen, "ours_ratio_to_ideal": one.ours.ratio, "eplb_ratio_to_ideal": one.eplb.ratio,
                "ours_minus_eplb": one.difference, "verdict": one.verdict,
            }
            for one in study.equal
        ],
    }  # fmt: skip


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
