"""figures: what a placement is worth on some steps, with intervals, beside its bound.  Floor 4.

Everything comes from one ``simulate``. Times are those of the routed experts alone: attention, dense layers and the
head are not in them. Does not know how the placement was found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.analysis.bootstrap import FEWEST_CLUSTERS, NUM_SAMPLES, basic_interval, resamples
from moelab.domain.machine import Machine
from moelab.exploration.bound import Bound
from moelab.exploration.memory import TierMemory
from moelab.exploration.sample import Part
from moelab.exploration.step_seconds import phase_steps, step_seconds
from moelab.policies.counts import LATE, MISSES, PREFETCHES, UPLOADS
from moelab.simulator.result import SimResult

if TYPE_CHECKING:
    import pandas as pd

Interval = tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Figures:
    """``tok_per_s`` of the routed experts (``None``: ``why_no_time``), ``reads_per_layer_step`` and hit rates, each
    of the phase's steps; ``..._interval``: 95%, by drawing ``num_clusters`` ``unit`` again, ``None`` below ten. It is
    of the steps alone: where a quick placement stands in for that of a planner (``stands_in_for``: its name), what the
    planner will find may lie outside.
    ``bytes_of_node`` and ``bytes_of_link`` by tier, per token, empty where nobody said the bytes of an expert.
    ``bound``: the least of ``bound_of`` on the same steps, ``gap`` above it with its interval (``None``: nothing bounds
    this policy, or the bound is 0). ``memory`` by tier. ``placed_by`` says where the placement comes from,
    ``is_preview`` that not all steps, or not the planner's placement, may stand behind it.
    """

    is_preview: bool
    placed_by: str
    stands_in_for: str
    scored_on: str
    num_tokens: int
    num_steps: int
    unit: str
    num_clusters: int
    tok_per_s: float | None
    tok_per_s_interval: Interval
    why_no_time: str
    ms_per_token: float | None
    reads_per_layer_step: float | None
    reads_interval: Interval
    hit_rate_per_routing: float | None
    hit_rate_per_request: float | None
    bytes_of_node: dict[str, float]
    bytes_of_link: dict[str, float]
    bound: float | None
    bound_of: str
    gap: float | None
    gap_interval: Interval
    memory: tuple[TierMemory, ...]
    train_reads_per_layer_step: float | None = None
    seconds: float = 0.0
    synthetic: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("memory", "extra")}
        return {**out, "memory": [tier.as_dict() for tier in self.memory]}

    def summary(self) -> dict[str, Any]:
        """What ``repr`` shows."""
        return {name: value for name, value in self.as_dict().items() if name != "memory"} | {
            f"{tier.tier}_bytes": tier.total_bytes for tier in self.memory
        }

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        return pd.DataFrame([self.summary()])

    def __repr__(self) -> str:
        return "Figures\n" + "\n".join(f"  {name}: {value}" for name, value in self.summary().items())


def figures(
    result: SimResult,
    part: Part,
    *,
    machine: Machine | None,
    efficiency: float,
    why_no_time: str,
    bound: Bound | None,
    memory: tuple[TierMemory, ...],
    placed_by: str,
    stands_in_for: str,
    scored_on: str,
    is_preview: bool,
) -> Figures:
    """Figures of ``result``, simulated on ``part`` with the counts of its steps.

    ``machine`` ``None``: no time, for the reason given.
    """
    assert result.counts is not None
    steps = phase_steps(result)
    cluster = part.cluster[steps]
    tokens = result.tokens_of_step[steps].astype(np.float64)
    used = (part.requests.set_sizes[steps] > 0).sum(1)
    moved = result.counts[steps][:, :, [MISSES, UPLOADS, PREFETCHES, LATE]].sum((1, 2))
    seconds = None if machine is None else step_seconds(result, machine, efficiency)
    num_there = len(np.unique(cluster))
    speed, speed_interval = _ratio(tokens, seconds, cluster, part.num_clusters)
    reads, reads_interval = _ratio(moved, used, cluster, part.num_clusters)
    ratio, ratio_interval = None, None
    if bound is not None:
        ratio, ratio_interval = _ratio(bound.reached.sum(1), bound.least.sum(1), cluster, part.num_clusters)
    per_token = 1 / max(1, result.num_tokens)
    return Figures(
        is_preview=is_preview, placed_by=placed_by, stands_in_for=stands_in_for, scored_on=scored_on,
        num_tokens=result.num_tokens, num_steps=int(steps.sum()), unit=part.unit, num_clusters=num_there,
        tok_per_s=speed, tok_per_s_interval=speed_interval, why_no_time=why_no_time,
        ms_per_token=1e3 / speed if speed else None,
        reads_per_layer_step=reads, reads_interval=reads_interval, hit_rate_per_routing=result.hit_rate_per_routing,
        hit_rate_per_request=result.hit_rate_per_request,
        bytes_of_node={name: value * per_token for name, value in result.bytes_of_node.items() if result.knows_bytes},
        bytes_of_link={name: value * per_token for name, value in result.bytes_of_link.items() if result.knows_bytes},
        bound=None if bound is None else bound.value, bound_of=_words(bound),
        gap=None if ratio is None else ratio - 1,
        gap_interval=None if ratio_interval is None else (ratio_interval[0] - 1, ratio_interval[1] - 1),
        memory=memory, synthetic=result.synthetic,
    )  # fmt: skip


def _words(bound: Bound | None) -> str:
    if bound is None:
        return ""
    return bound.of + ("" if bound.value > 0 else ", which is 0 here: no gap can be told")


def _ratio(
    above: np.ndarray, below: np.ndarray | None, cluster: np.ndarray, num_clusters: int
) -> tuple[float | None, Interval]:
    """(sum of ``above`` / sum of ``below``, its 95% interval by drawing clusters again), [S] each."""
    if below is None or not below.sum() > 0:
        return None, None
    value = float(above.sum() / below.sum())
    there = np.bincount(cluster, minlength=num_clusters) > 0
    if there.sum() < FEWEST_CLUSTERS:
        return value, None
    over, under = (np.bincount(cluster, column, num_clusters)[there] for column in (above, below))
    weights = resamples(int(there.sum()), NUM_SAMPLES, 0).astype(np.float64)
    low, high = basic_interval(np.array(value), (weights @ over) / (weights @ under))
    return value, (float(low), float(high))
