"""placement_study: every planner of NUMA nodes on a trace at several amounts of memory, held out, paired by request.

Floor 5. Half of the requests plan, half score. Prefill-only traces take each token as a step of its own, as decode at
batch 1 would, and every table says so. Beside them ours and EPLB over several splits, at equal bytes
(``equal_bytes``) and with the same budget (``full_budget``), a certificate of one layer by branch and bound, and the
fast tier with nodes planned together beside one after the other (``fast_and_nodes``). Does not know Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moelab.domain.machine import Machine
from moelab.domain.plan import Plan
from moelab.domain.trace import Phase, Trace
from moelab.findings.equal_bytes import EqualBytes, equal_bytes
from moelab.findings.fast_and_nodes import FastAndNodes, fast_and_nodes
from moelab.findings.full_budget import FullBudget, full_budget
from moelab.planner import NODE_PLANNERS
from moelab.planner.certificate import Certificate, certificate
from moelab.planner.node_plan import masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import NodeScore, node_score

EXTRA_MEMORY = (0.0, 0.1, 0.25)
HELD_OUT = 0.5
FAST_SHARE = 0.1
OURS = ("coact", "replicate", "anneal")
THEIRS = ("round_robin", "random_nodes", "eplb")
WITHOUT_MEMORY = ("round_robin",)  # planners that do not use any
SEEDS = (0, 1, 2)
CERTIFICATE_STEPS = 128


@dataclass(frozen=True, eq=False)
class Placed:
    """One planner at one amount of extra memory."""

    planner: str
    extra_memory: float
    plan: Plan
    score: NodeScore
    in_sample_ratio: float


@dataclass(frozen=True, eq=False)
class PlacementStudy:
    """``placed`` by (planner, extra memory), of the first seed; ``equal`` (bytes) and ``full`` (budget): ours beside
    EPLB, of all seeds.

    ``joint``: with ``FAST_SHARE`` of the experts on a fast tier, of all seeds. ``made``: day and machine, whose
    seconds are in the plans and proofs.
    """

    name: str
    trace: Trace
    num_nodes: int
    steps: str
    num_layer_steps: int
    has_intervals: bool
    split: str
    placed: dict[tuple[str, float], Placed]
    certificates: dict[float, Certificate]
    joint: list[FastAndNodes]
    equal: list[EqualBytes]
    full: list[FullBudget]
    made: str


def placement_study(
    name: str,
    trace: Trace,
    *,
    num_nodes: int = 2,
    seeds: Sequence[int] = SEEDS,
    certificate_s: float = 60.0,
    certificate_steps: int = CERTIFICATE_STEPS,
    tell: Callable[[str], None] = lambda text: None,
) -> PlacementStudy:
    """Run every planner; ``tell`` is called with what has been done."""
    has_decode = bool((trace.tokens.phase == Phase.DECODE).any())
    shared: dict[str, Any] = {
        "nodes": num_nodes, "held_out": HELD_OUT, "seed": seeds[0], "steps": "step" if has_decode else "token",
        "phase": "decode" if has_decode else "prefill",
    }  # fmt: skip
    problems = {share: node_problem(trace, extra_memory=share, **shared) for share in EXTRA_MEMORY}
    first = problems[EXTRA_MEMORY[0]]
    placed: dict[tuple[str, float], Placed] = {}

    def run(planner: str, share: float) -> None:
        plan = NODE_PLANNERS[planner](trace, extra_memory=share, score=False, **shared)
        on_test, on_train = (
            node_score(part, masks_of_plan(plan), first.times, first.layer_weight) for part in (first.test, first.train)
        )
        placed[planner, share] = Placed(planner, share, plan, on_test, on_train.ratio)
        tell(f"{name}, {num_nodes} nodes: {planner} at {share:.0%} extra memory")

    for planner in (*THEIRS, *OURS):
        if planner == "eplb" and trace.header.num_experts % num_nodes:
            continue
        for share in EXTRA_MEMORY[:1] if planner in WITHOUT_MEMORY else EXTRA_MEMORY:
            run(planner, share)
    run("mirror", 0.0)
    if first.can_cut:
        run("row_split", 0.0)
        for share in EXTRA_MEMORY:
            run("split_some", share)
    certificates: dict[float, Certificate] = {}
    for share in EXTRA_MEMORY if certificate_s else ():
        masks = masks_of_plan(placed["anneal", share].plan)
        certificates[share] = certificate(
            problems[share], masks, layer=trace.header.num_layers // 2, num_steps=certificate_steps,
            time_limit_s=certificate_s,
        )  # fmt: skip
        tell(f"{name}, {num_nodes} nodes: certificate at {share:.0%}")
    slots = round(FAST_SHARE * trace.header.num_layers * trace.header.num_experts)
    of_any_seed = {key: value for key, value in shared.items() if key != "seed"}

    def tell_of(text: str) -> None:
        tell(f"{name}, {num_nodes} nodes: {text}")

    joint = fast_and_nodes(trace, of_any_seed, slots=slots, seeds=seeds, tell=tell_of)
    equal = equal_bytes(trace, of_any_seed, offers=EXTRA_MEMORY, seeds=seeds, tell=tell_of)
    full = full_budget(trace, of_any_seed, beside=equal, tell=tell_of)
    return PlacementStudy(
        name=name, trace=trace, num_nodes=num_nodes, steps=shared["steps"],
        num_layer_steps=first.test.num_layer_steps, has_intervals=placed["mirror", 0.0].score.has_interval,
        split=first.how["split"], placed=placed, certificates=certificates, joint=joint, equal=equal, full=full,
        made=_made(),
    )  # fmt: skip


def _made() -> str:
    here = Machine.detect()
    return f"{datetime.now(UTC).strftime('%Y-%m-%d')} on {here.cpu or here.name}, {here.num_cores} cores"
