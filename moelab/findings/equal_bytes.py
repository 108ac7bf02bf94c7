"""equal_bytes: our planners beside EPLB when every node may hold what EPLB's plan holds there, over several splits.

Floor 5. EPLB adds whole replicas, as many in each layer and on each node, so that of an amount of memory on offer it
spends what is a multiple of that; ours then may spend as much and no more, node by node. What is ours is chosen inside
the planning requests (``planner.best``) and scored, like EPLB, on requests that neither has seen; other seeds part the
requests otherwise, so that nothing hangs on one split. Does not know Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moelab.domain.trace import Trace
from moelab.planner import best, eplb
from moelab.planner.node_plan import masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import NodeScore, node_score

MOST_VISITS = 1_000_000_000
"""Of annealing: a quarter of its default, because every seed and amount of memory plans twice."""


@dataclass(frozen=True, eq=False)
class EqualBytes:
    """One split and one amount of memory on offer: what was held, what ours chose, and both scores held out.

    ``offered`` and ``held`` (by EPLB's plan): extra memory as a fraction of all experts; ``our_bytes`` and
    ``eplb_bytes`` int64 [N]: by node, experts where their bytes are not known. ``difference``: (ours - EPLB in experts,
    low, high), paired by request, NaN without an interval.
    """

    seed: int
    split: str
    offered: float
    held: float
    chosen: str
    our_bytes: np.ndarray
    eplb_bytes: np.ndarray
    ours: NodeScore
    eplb: NodeScore
    difference: tuple[float, float, float]

    @property
    def verdict(self) -> str:
        return verdict_of(self.difference)


def verdict_of(difference: tuple[float, float, float]) -> str:
    """``ours ahead``, ``eplb ahead``, ``tie`` (the interval holds zero) or ``no interval``."""
    _, low, high = difference
    if np.isnan(low):
        return "no interval"
    return "ours ahead" if high < 0 else "eplb ahead" if low > 0 else "tie"


def equal_bytes(
    trace: Trace,
    shared: dict[str, Any],
    *,
    offers: Sequence[float],
    seeds: Sequence[int],
    most_visits: int = MOST_VISITS,
    tell: Callable[[str], None] = lambda text: None,
) -> list[EqualBytes]:
    """A row for each seed and offer; one seed where requests cannot be parted. ``shared``: options of planners.

    Empty where the experts do not divide over the nodes, which EPLB needs.
    """
    if trace.header.num_experts % shared["nodes"]:
        return []
    rows: list[EqualBytes] = []
    for seed in seeds:
        for offer in offers:
            rows.append(_row(trace, {**shared, "seed": seed}, offer, most_visits))
            tell(f"equal bytes, seed {seed}, {offer:.0%} on offer: {rows[-1].verdict}")
        if rows[-1].split != "request":
            break
    return rows


def _row(trace: Trace, options: dict[str, Any], offer: float, most_visits: int) -> EqualBytes:
    theirs = eplb(trace, extra_memory=offer, score=False, **options)
    problem = node_problem(trace, extra_memory=offer, **options)
    used = problem.used(masks_of_plan(theirs))
    ours = best(trace, node_bytes=used.tolist(), most_visits=most_visits, score=False, **options)
    our_score, their_score = (
        node_score(problem.test, masks_of_plan(plan), problem.times, problem.layer_weight) for plan in (ours, theirs)
    )
    return EqualBytes(
        seed=options["seed"], split=problem.how["split"], offered=offer, held=float(used.sum() / problem.all_bytes - 1),
        chosen=ours.planner["chosen"], our_bytes=problem.used(masks_of_plan(ours)), eplb_bytes=used, ours=our_score,
        eplb=their_score, difference=our_score.difference(their_score),
    )  # fmt: skip
