"""fast_and_nodes: ``joint`` beside the usual way, first the fast tier, then the nodes, over several splits.

Floor 5. The usual way twice: the hottest experts on the fast tier with the rest balanced by load, and ``sequential``,
the same set with the rest annealed as ``joint`` anneals. What ``joint`` gains over the second is worth of choosing both
together and of two more searches; the rest of its gain over the first is annealing's. All three have the same slots and
memory and are scored where none has looked. Does not know Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moelab.domain.trace import Trace
from moelab.planner import joint, sequential
from moelab.planner.node_plan import masks_of_plan
from moelab.planner.node_problem import node_problem
from moelab.planner.node_score import NodeScore, node_score
from moelab.planner.sequential import hit_rate, hottest_first

OFFERS = (0.0, 0.1)
"""Extra memory on the nodes, as a fraction of all experts."""


@dataclass(frozen=True, eq=False)
class FastAndNodes:
    """One split and amount of memory: scores and hit rates per request, by ``WAYS``.

    ``difference``: (joint - sequential in experts, low, high), paired by request, NaN without an interval.
    """

    seed: int
    split: str
    offered: float
    slots: int
    scores: dict[str, NodeScore]
    hit_rates: dict[str, float]
    difference: tuple[float, float, float]

    @property
    def verdict(self) -> str:
        """``joint ahead``, ``sequential ahead``, ``tie`` (the interval holds zero) or ``no interval``."""
        _, low, high = self.difference
        if np.isnan(low):
            return "no interval"
        return "joint ahead" if high < 0 else "sequential ahead" if low > 0 else "tie"


WAYS = ("hottest first", "sequential", "joint")


def fast_and_nodes(
    trace: Trace,
    shared: dict[str, Any],
    *,
    slots: int,
    seeds: Sequence[int],
    tell: Callable[[str], None] = lambda text: None,
) -> list[FastAndNodes]:
    """A row for each seed and amount of memory; one seed where requests cannot be parted.

    ``slots``: experts of all layers together on the fast tier. ``shared``: options of planners.
    """
    rows: list[FastAndNodes] = []
    for seed in seeds:
        for offer in OFFERS:
            options = {**shared, "seed": seed, "extra_memory": offer}
            problem = node_problem(trace, fast_slots=[slots], **options)
            masks = {
                "hottest first": hottest_first(problem, [slots]),
                **{
                    plan.planner["name"]: masks_of_plan(plan)
                    for plan in (
                        planner(trace, fast_slots=slots, score=False, **options) for planner in (sequential, joint)
                    )
                },
            }
            scores = {
                way: node_score(problem.test, masks[way], problem.times, problem.layer_weight) for way in WAYS
            }  # fmt: skip
            rows.append(
                FastAndNodes(
                    seed=seed, split=problem.how["split"], offered=offer, slots=slots, scores=scores,
                    hit_rates={way: hit_rate(problem, masks[way]) for way in WAYS},
                    difference=scores["joint"].difference(scores["sequential"]),
                )
            )  # fmt: skip
            tell(f"fast tier and nodes, seed {seed}, {offer:.0%}: {rows[-1].verdict}")
        if rows[-1].split != "request":
            break
    return rows
