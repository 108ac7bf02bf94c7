"""The tables of docs/placement.md as Markdown.  Floor 5.

Everything between the markers of the page is replaced (``markdown``). Knows studies and how to print them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moelab.findings.fast_and_nodes import WAYS
from moelab.findings.full_budget import TARGETS, FullBudget
from moelab.findings.markdown import kind_of, markdown_table, replace_between
from moelab.findings.placement_study import (
    EXTRA_MEMORY,
    FAST_SHARE,
    Placed,
    PlacementStudy,
)

BEGIN = "<!-- placement: written by `moelab findings --placement`, do not edit below -->"
END = "<!-- end of placement -->"
TARGET_GAP = 0.02
"""Of annealing alone above a dual bound of the same steps."""


def update_placement_page(studies: Sequence[PlacementStudy], path: str | Path) -> Path:
    """Put the tables between the markers of ``path``; raises ``ValueError`` where the page lacks them."""
    return replace_between(path, BEGIN, END, placement_tables(studies), title="Placement on NUMA nodes")


def placement_tables(studies: Sequence[PlacementStudy]) -> str:
    """All tables, Markdown."""
    made = f"Planned, proven and scored {'; '.join(dict.fromkeys(study.made for study in studies))}.\n"
    planners = [_planners(study) for study in studies]
    return "\n".join([made, _budgets(studies), _leaders(studies), *planners, _proofs(studies), _joint(studies)])


def _about(study: PlacementStudy) -> str:
    header = study.trace.header
    steps = "each token its own step" if study.steps == "token" else "steps as recorded"
    num_requests = len(np.unique(study.trace.tokens.request))
    alone = "one request" if num_requests == 1 else f"{num_requests} requests decoded together"
    held = {"request": "held out by request", "time": f"{alone}, cut in time", "none": "in sample"}[study.split]
    return (
        f"{study.name} ({header.model}, {kind_of(study.trace)}, {header.num_layers} x {header.num_experts} "
        f"top-{header.top_k}, {steps}, {held}, {study.num_layer_steps:,} layer-steps scored), {study.num_nodes} nodes"
    )


def _budgets(studies: Sequence[PlacementStudy]) -> str:
    head = ("trace, nodes", "extra memory on offer", "splits", "ours, held out: max / (K/N)", "in sample",
            "eplb, held out", "ours and eplb hold", "chosen", "ours - eplb in experts, each split (95%)", "verdict",
            "target")  # fmt: skip
    rows = []
    for study in studies:
        for offer in dict.fromkeys(one.offered for one in study.full):
            of_offer = [one for one in study.full if one.offered == offer]
            rows.append(
                (
                    f"{study.name}, {study.num_nodes}", f"{offer:.0%}", f"{len(of_offer)}",
                    _range([one.ours.ratio for one in of_offer], ".3f"),
                    _range([one.in_sample for one in of_offer], ".3f"),
                    _range([one.eplb.ratio for one in of_offer], ".3f"),
                    f"{_range([one.held for one in of_offer], '.2%')}, "
                    f"{_range([one.eplb_held for one in of_offer], '.2%')}",
                    _counted([one.chosen for one in of_offer]),
                    "; ".join(_signed(*one.difference) for one in of_offer),
                    _counted([one.verdict for one in of_offer]), _target(study, of_offer),
                )
            )  # fmt: skip
    note = (
        "Both have the same memory on offer and hold what they can make use of: EPLB adds whole replicas for each "
        "layer and node. Ours is `best`, chosen by an inner split of the planning half, searched for as long as "
        "by default. Median and range over the splits; targets are of each split, two nodes, held out.\n\n"
    )
    return "## Ours beside EPLB with the same memory on offer\n\n" + note + markdown_table(head, rows)


def _target(study: PlacementStudy, of_offer: Sequence[FullBudget]) -> str:
    """The target of this trace and amount of memory, and in how many splits ours is within it."""
    target = TARGETS.get((study.name, of_offer[0].offered)) if study.num_nodes == 2 else None
    if target is None:
        return ""
    num_met = sum(one.ours.ratio <= target for one in of_offer)
    return f"{target:.3f}: " + ("met" if num_met == len(of_offer) else f"met in {num_met} of {len(of_offer)}")


def _leaders(studies: Sequence[PlacementStudy]) -> str:
    head = ("trace, nodes", "extra memory on offer", "both hold", "splits", "eplb: max / (K/N)", "ours: max / (K/N)",
            "chosen", "ours - eplb in experts, each split (95%)", "verdict")  # fmt: skip
    rows = []
    for study in studies:
        for offer in dict.fromkeys(one.offered for one in study.equal):
            of_offer = [one for one in study.equal if one.offered == offer]
            rows.append(
                (
                    f"{study.name}, {study.num_nodes}", f"{offer:.0%}", _range([one.held for one in of_offer], ".2%"),
                    f"{len(of_offer)}", _range([one.eplb.ratio for one in of_offer], ".3f"),
                    _range([one.ours.ratio for one in of_offer], ".3f"), _counted([one.chosen for one in of_offer]),
                    "; ".join(_signed(*one.difference) for one in of_offer),
                    _counted([one.verdict for one in of_offer]),
                )
            )  # fmt: skip
    note = (
        "Every node may hold what EPLB's plan holds there and no more: it adds whole replicas, as many in each layer "
        "and on each node, so it may spend less than is on offer, and a replica that lies twice on a node counts once. "
        "Ours is `best`: chosen by an inner split of the planning half, "
        "annealed a quarter as long as by default. Median and range over the splits.\n\n"
    )
    return "## Ours beside EPLB at equal bytes\n\n" + note + markdown_table(head, rows)


def _range(values: Sequence[float], form: str) -> str:
    """Median and range, one number where they print alike."""
    middle, low, high = (f"{value:{form}}" for value in (np.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _counted(names: Sequence[str]) -> str:
    """What was seen, and how often where it was not always the same."""
    found = {name: names.count(name) for name in names}
    return (
        names[0] if len(found) == 1 else ", ".join(f"{name} {count} of {len(names)}" for name, count in found.items())
    )


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
    head = ("trace, nodes", "experts", "extra memory", "steps", "dual bound", "annealed alone", "its gap",
            "`anneal`'s plan", "its gap", "better found", "proven", "within 2%", "s (limit)")  # fmt: skip
    rows = [
        (
            f"{study.name}, {study.num_nodes}", f"{study.trace.header.num_experts}", f"{share:.0%}",
            f"{proof.num_steps}", f"{proof.bound:.3f}", f"{proof.annealed:.3f}", f"{proof.gap:.2%}",
            f"{proof.plan:.3f}", f"{proof.plan_gap:.2%}", "none" if proof.milp is None else f"{proof.milp:.3f}",
            "at ceil(K/N)" if proof.lp is None else "optimum" if proof.is_optimal else
            "bound" if proof.num_programs == 1 else f"bound, {proof.num_programs} programs",
            within_target(proof.gap, proof.is_optimal),
            f"{proof.milp_s:.0f} ({proof.time_limit_s:.0f})",
        )
        for study in studies for share, proof in study.certificates.items()
    ]  # fmt: skip
    note = (
        "One layer in the middle, some of its planning steps, all columns on the SAME steps (in sample). No placement "
        "with as many copies on each node is below the dual bound. The plan is made for all planning steps, so its gap "
        "holds what fitting these alone would give; `annealed alone` is the search by itself, and "
        f"its gap is to be at most {TARGET_GAP:.0%}; `not shown`: it is more, of the search, the bound or both.\n\n"
    )
    return "## How far from the optimum, proven\n\n" + note + markdown_table(head, rows)


def within_target(gap: float, is_optimal: bool) -> str:
    """Verdict on annealing alone; above a bound that is not the optimum nobody knows which of both is at fault."""
    return "yes" if gap <= TARGET_GAP else "no" if is_optimal else "not shown"


def _joint(studies: Sequence[PlacementStudy]) -> str:
    head = ("trace, nodes", "extra memory", "splits", "hottest first: mean max", "its hit rate",
            "`sequential`: mean max", "`joint`: mean max", "its hit rate",
            "joint - sequential in experts, each split (95%)", "verdict")  # fmt: skip
    rows = []
    for study in studies:
        for offer in dict.fromkeys(one.offered for one in study.joint):
            of_offer = [one for one in study.joint if one.offered == offer]
            mean_of = {way: _range([one.scores[way].mean for one in of_offer], ".3f") for way in WAYS}
            hits_of = {way: _range([one.hit_rates[way] for one in of_offer], ".1%") for way in WAYS}
            rows.append(
                (
                    f"{study.name}, {study.num_nodes}", f"{offer:.0%}", f"{len(of_offer)}", mean_of["hottest first"],
                    hits_of["hottest first"], mean_of["sequential"], mean_of["joint"], hits_of["joint"],
                    "; ".join(_signed(*one.difference) for one in of_offer),
                    _counted([one.verdict for one in of_offer]),
                )
            )  # fmt: skip
    note = (
        f"A fast tier of {FAST_SHARE:.0%} of all experts, which takes no time. Hottest first: the most used experts of "
        "the planning half on it, the rest balanced by load over the nodes, copies by gain. `sequential`: the same "
        "experts on it, so the same hit rate, the rest annealed as `joint` anneals. So joint - sequential is worth of "
        "choosing both together and of two more searches (another seed alone: up to 0.009), and the rest of the way "
        "from hottest first is annealing's. Mean of the maximum of a layer-step, held out; median and range over the "
        "splits.\n\n"
    )
    return "## Fast tier and nodes together\n\n" + note + markdown_table(head, rows)


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.3f}" + ("" if np.isnan(low) else f" ({low:+.3f} to {high:+.3f})")
