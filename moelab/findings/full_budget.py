"""full_budget: our planners with all the memory on offer, beside EPLB with the same on offer, over several splits.

Floor 5. ``equal_bytes`` gives ours no more than EPLB makes use of; this gives both the same budget and lets each spend
what it can, as a user would. Ours is chosen inside the planning requests (``planner.best``), searched for as long as
by default, and scored, on the same requests as that EPLB, where neither has looked. Does not know Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moelab.domain.trace import Trace
from moelab.findings.equal_bytes import EqualBytes, verdict_of
from moelab.planner import best
from moelab.planner.anneal import MOST_VISITS
from moelab.planner.node_plan import masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import NodeScore, node_score

TARGETS = {
    ("gpt_oss_20b_fingerprint", 0.1): 1.085,
    ("gpt_oss_20b_fingerprint", 0.25): 1.023,
    ("deepseek_v2_lite_esft", 0.1): 1.072,
    ("deepseek_v2_lite_esft", 0.25): 1.023,
}
"""Mean of the maximum over K/N that ours is to reach held out on two nodes, by trace and extra memory."""


@dataclass(frozen=True, eq=False)
class FullBudget:
    """One split and one amount of memory on offer. ``held`` (by ours) and ``eplb_held``: fractions of all experts.

    ``in_sample``: max over K/N on the planning half. ``difference``: (ours - EPLB in experts, low, high), paired by
    request, NaN without an interval.
    """

    seed: int
    split: str
    offered: float
    held: float
    eplb_held: float
    chosen: str
    ours: NodeScore
    in_sample: float
    eplb: NodeScore
    difference: tuple[float, float, float]

    @property
    def verdict(self) -> str:
        """As of ``EqualBytes``."""
        return verdict_of(self.difference)


def full_budget(
    trace: Trace,
    shared: dict[str, Any],
    *,
    beside: Sequence[EqualBytes],
    most_visits: int = MOST_VISITS,
    tell: Callable[[str], None] = lambda text: None,
) -> list[FullBudget]:
    """A row for each of ``beside`` that has extra memory on offer: its EPLB, split and seed. ``shared``: as there."""
    rows = []
    for one in beside:
        if not one.offered:
            continue
        options = {**shared, "seed": one.seed, "extra_memory": one.offered}
        plan = best(trace, most_visits=most_visits, score=False, **options)
        problem = node_problem(trace, **options)
        masks = masks_of_plan(plan)
        ours, on_train = (
            node_score(part, masks, problem.times, problem.layer_weight) for part in (problem.test, problem.train)
        )
        rows.append(
            FullBudget(
                seed=one.seed, split=one.split, offered=one.offered,
                held=float(problem.used(masks).sum() / problem.all_bytes - 1), eplb_held=one.held,
                chosen=plan.planner["chosen"], ours=ours, in_sample=on_train.ratio, eplb=one.eplb,
                difference=ours.difference(one.eplb),
            )
        )  # fmt: skip
        tell(f"full budget, seed {one.seed}, {one.offered:.0%}: {ours.ratio:.3f} of K/N, {rows[-1].verdict}")
    return rows
