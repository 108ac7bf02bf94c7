"""inner_split: the planning requests once more in two, to choose a planner's own strength without the held-out ones.

Floor 3. By cluster of requests, or in time where there is one cluster. Does not know what is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

from moelab.planner.layer_steps import LayerSteps
from moelab.planner.node_problem import NodeProblem
from moelab.planner.node_score import node_score

T = TypeVar("T", bound=Hashable)


def inner_split(steps: LayerSteps, seed: int) -> tuple[LayerSteps, LayerSteps]:
    """(two thirds to fit, a third to judge): clusters drawn with ``seed``; of one cluster the last third judges."""
    present = np.unique(steps.cluster)
    if len(present) > 1:
        num_judged = max(1, round(len(present) / 3))
        judged = np.isin(steps.cluster, np.random.default_rng(seed).permutation(present)[:num_judged])
    else:
        first = np.searchsorted(steps.layer, np.arange(steps.num_layers + 1))
        place = np.arange(steps.num_layer_steps) - first[steps.layer]
        judged = place >= np.ceil(np.diff(first)[steps.layer] * 2 / 3)
    if judged.all() or not judged.any():
        return steps, steps
    return steps.take(~judged), steps.take(judged)


def choose_by_inner_split(
    problem: NodeProblem, candidates: Sequence[T], place: Callable[[LayerSteps, T], np.ndarray]
) -> tuple[T, dict[T, float]]:
    """(the candidate whose masks, fitted on two thirds, have the least mean maximum on the rest; all means).

    Ties: the earlier one.
    """
    fitted, judged = inner_split(problem.train, problem.how["seed"])
    means = {
        value: node_score(judged, place(fitted, value), problem.times, problem.layer_weight).mean
        for value in candidates
    }
    return min(means, key=means.__getitem__), means
