"""The tables of docs/placement.md as Markdown.  Floor 5.

Everything between the markers of the page is replaced, as in ``page``. Knows studies and how to print them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moelab.findings.page import markdown_table, replace_between
from moelab.findings.placement_study import (
    CERTIFICATE_STEPS,
    EXTRA_MEMORY,
    FAST_SHARE,
    OURS,
    Placed,
    PlacementStudy,
)

BEGIN = "<!-- placement: written by `moelab findings --placement`, do not edit below -->"
END = "<!-- end of placement -->"


def update_placement_page(studies: Sequence[PlacementStudy], path: str | Path) -> Path:
    """Put the tables between the markers of ``path``; raises ``ValueError`` where the page lacks them."""
    return replace_between(path, BEGIN, END, placement_tables(studies), title="Placement on NUMA nodes")


def placement_tables(studies: Sequence[PlacementStudy]) -> str:
    """All tables, Markdown."""
    return "\n".join([_leaders(studies), *(_planners(study) for study in studies), _proofs(studies), _joint(studies)])


def _about(study: PlacementStudy) -> str:
    header = study.trace.header
    kind = "SYNTHETIC" if header.synthetic else "recorded"
    steps = "each token its own step" if study.steps == "token" else "steps as recorded"
    held = {"request": "held out by request", "time": "one request, cut in time", "none": "in sample"}[study.split]
    return (
        f"{study.name} ({header.model}, {kind}, {header.num_layers} x {header.num_experts} top-{header.top_k}, "
        f"{steps}, {held}, {study.num_layer_steps:,} layer-steps scored), {study.num_nodes} nodes"
    )


def _leaders(studies: Sequence[PlacementStudy]) -> str:
    head = ("trace, nodes", "extra memory", "eplb: max / (K/N)", "best of ours", "max / (K/N)",
            "ours - eplb, experts (95%)", "verdict")  # fmt: skip
    rows = []
    for study in studies:
        for share in EXTRA_MEMORY:
            ours, theirs = study.best(share, OURS), study.placed.get(("eplb", share))
            if theirs is None:
                continue
            value, low, high = ours.score.difference(theirs.score)
            rows.append(
                (
                    f"{study.name}, {study.num_nodes}", f"{share:.0%}", f"{theirs.score.ratio:.3f}", ours.planner,
                    f"{ours.score.ratio:.3f}", _signed(value, low, high), _verdict(low, high),
                )
            )  # fmt: skip
    return "## Ours beside EPLB\n\n" + markdown_table(head, rows)


def _planners(study: PlacementStudy) -> str:
    head = ["planner"]
    for share in EXTRA_MEMORY:
        head += [f"{share:.0%}: mean max (95%)", "over K/N", "in sample"]
    head.append("seconds")
    rows = []
    for name in dict.fromkeys(planner for planner, _ in study.placed):
        cells, seconds = [name], []
        for share in EXTRA_MEMORY:
            one = study.placed.get((name, share))
            cells += ["", "", ""] if one is None else _cells(study, one)
            if one is not None:
                seconds.append(f"{one.plan.prediction['seconds']:.1f}")
        rows.append((*cells, ", ".join(seconds)))
    mirror = study.placed["mirror", 0.0].score
    note = (
        f"Mean over layer-steps of the experts on the fullest node. K/N is {mirror.ideal_mean:.3f}; whole experts "
        f"cannot go below {mirror.mean:.3f} (`mirror`). `mirror` takes {study.num_nodes - 1} times all experts "
        "as extra memory; `row_split` and the cut experts of `split_some` count bytes alone, their price is not "
        "measured.\n\n"
    )
    return f"### {_about(study)}\n\n{note}" + markdown_table(head, rows)


def _cells(study: PlacementStudy, one: Placed) -> list[str]:
    low, high = one.score.interval()
    known = "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"
    return [f"{one.score.mean:.3f}{known}", f"{one.score.ratio:.3f}", f"{one.in_sample_ratio:.3f}"]


def _proofs(studies: Sequence[PlacementStudy]) -> str:
    head = ("trace, nodes", "experts", "extra memory", "steps", "annealed", "dual bound", "gap", "HiGHS found",
            "proven optimal", "HiGHS s (limit)")  # fmt: skip
    rows = [
        (
            f"{study.name}, {study.num_nodes}", f"{study.trace.header.num_experts}", f"{share:.0%}",
            f"{proof.num_steps}", f"{proof.annealed:.3f}", f"{proof.bound:.3f}", f"{proof.gap:.2%}",
            "nothing" if proof.milp is None else f"{proof.milp:.3f}", "yes" if proof.is_optimal else "no",
            f"{proof.milp_s:.0f} ({proof.time_limit_s:.0f})",
        )
        for study in studies for share, proof in study.certificates.items()
    ]  # fmt: skip
    note = (
        f"One layer in the middle, up to {CERTIFICATE_STEPS} of its planning steps: annealed and solved on the SAME "
        "steps (in sample). No placement with these budgets is below the dual bound.\n\n"
    )
    return "## How far from the optimum, proven\n\n" + note + markdown_table(head, rows)


def _joint(studies: Sequence[PlacementStudy]) -> str:
    head = (
        "trace, nodes",
        "hottest first: mean max of a layer-step",
        "its hit rate",
        "`joint`: mean max",
        "its hit rate",
    )
    rows = [
        (
            f"{study.name}, {study.num_nodes}", f"{study.joint['hottest_first_mean_max']:.3f}",
            f"{study.joint['hottest_first_hit_rate']:.1%}", f"{study.joint['heldout_mean_max']:.3f}",
            f"{study.joint['hit_rate_per_request']:.1%}",
        )
        for study in studies
    ]  # fmt: skip
    note = (
        f"A fast tier of {FAST_SHARE:.0%} of all experts, which takes no time, no extra memory on the nodes; hottest "
        "first: the most used experts on it, the rest balanced over the nodes.\n\n"
    )
    return "## Fast tier and nodes together\n\n" + note + markdown_table(head, rows)


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.3f}" + ("" if np.isnan(low) else f" ({low:+.3f} to {high:+.3f})")


def _verdict(low: float, high: float) -> str:
    if np.isnan(low):
        return "no interval"
    return "ours ahead" if high < 0 else "eplb ahead" if low > 0 else "tie"
