"""compare(trace, parameters): synthetic routing beside real routing, on requests that it was not fitted to.  Floor 4.

The generator makes the requests of the trace again (numbers, lengths, domains), several times with several
seeds; both are cut into the same halves of the requests. Parameters are fitted on one half (``fit``), every
figure here is of the other. The rule of acceptance is set beforehand: miss ratios within 2 points and node
maxima within 2% on the held-out half; a generator that misses it is still shown, with its misses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.trace import TokenTable, Trace
from moelab.planner.frequency import split
from moelab.realism.moments import moments
from moelab.realism.placement_figures import placement_figures
from moelab.synthetic import RoutingParameters, RoutingShape, Workload, generate

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT, SPLIT_SEED = 0.5, 0
"""Half of the requests, which half: ``fit`` and ``compare`` must cut alike."""

MISS_POINTS, NODE_PERCENT = 2.0, 2.0
"""Acceptance: largest error of a miss ratio in points, and of a node maximum in percent."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """``names`` of the figures; ``real`` float64 [M] and ``synthetic`` float64 [S, M], one row for each seed."""

    model: str
    source: str
    split: str
    num_tokens: int
    num_requests: int
    names: tuple[str, ...]
    real: np.ndarray
    synthetic: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """float64 [M]: over seeds."""
        return self.synthetic.mean(0)

    @property
    def error(self) -> np.ndarray:
        """float64 [M]: in points for shares and miss ratios, in percent for lifts and node maxima."""
        relative = np.array([is_relative(name) for name in self.names])
        return 100 * (self.mean - self.real) / np.where(relative, self.real, 1)

    @property
    def accepted(self) -> bool:
        """Are all miss ratios and node maxima within the rule?"""
        return all(
            abs(error) <= (NODE_PERCENT if is_relative(name) else MISS_POINTS)
            for name, error in zip(self.names, self.error, strict=True)
            if is_placement(name)
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each figure."""
        import pandas as pd

        relative = [is_relative(name) for name in self.names]
        limit = [
            (NODE_PERCENT if r else MISS_POINTS) if is_placement(n) else np.nan
            for n, r in zip(self.names, relative, strict=True)
        ]
        columns: dict[str, Any] = {
            "figure": self.names,
            "real": self.real,
            "synthetic": self.mean,
            "synthetic_min": self.synthetic.min(0),
            "synthetic_max": self.synthetic.max(0),
            "error": self.error,
            "unit": ["%" if r else "points" for r in relative],
            "limit": limit,
        }
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """The table and what it stands for, as JSON can hold it."""
        return {
            "model": self.model, "parameters": self.source, "split": self.split, "tokens": self.num_tokens,
            "requests": self.num_requests, "seeds": len(self.synthetic), "accepted": self.accepted,
            "rows": self.to_frame().to_dict(orient="records"),
        }  # fmt: skip

    @property
    def title(self) -> str:
        """What was compared, and the verdict."""
        verdict = "within" if self.accepted else "NOT within"
        return (
            f"Synthetic routing beside {self.model}: {self.num_tokens:,} tokens, {self.num_requests} requests, "
            f"{self.split}; {len(self.synthetic)} seeds; parameters {self.source}; "
            f"{verdict} {MISS_POINTS:g} points and {NODE_PERCENT:g}%"
        )

    def __repr__(self) -> str:
        return f"{self.title}\n" + self.to_frame().to_string(index=False, float_format="%.3f", na_rep="")

    def _repr_html_(self) -> str:
        return f"<b>{self.title}</b>" + self.to_frame().to_html(index=False, float_format="%.3f", na_rep="")


def is_placement(name: str) -> bool:
    """Not fitted to: miss ratios and node maxima."""
    return "miss_" in name or name.startswith("node_maximum")


def is_relative(name: str) -> bool:
    """Errors in percent of the real figure rather than in points."""
    return name.startswith(("node_maximum", "pair_lift"))


def like(trace: Trace, parameters: RoutingParameters, seed: int) -> Trace:
    """Synthetic routing of the same shape, with the requests, phases and steps of ``trace``."""
    parts: Iterable[Trace] = generate(
        RoutingShape.of_trace(trace.header), parameters, Workload.of_trace(trace), seed=seed
    )
    batches = list(parts)
    made = Trace(
        batches[0].header,
        np.concatenate([b.experts for b in batches]),
        np.concatenate([b.gate_weights for b in batches]),
        TokenTable.concatenate([b.tokens for b in batches]),
    )
    # The generator runs requests one after the other, numbered from 0; the trace may have interleaved them.
    _, first, inverse = np.unique(trace.tokens.request, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")[inverse]
    place = np.empty(trace.num_tokens, np.int64)
    place[np.argsort(rank, kind="stable")] = np.arange(trace.num_tokens)
    return Trace(made.header, made.experts[place], made.gate_weights[place], trace.tokens)


def compare(
    trace: Trace, parameters: RoutingParameters, *, num_seeds: int = 3, seed: int = 0, progress: bool = True
) -> Comparison:
    """Held-out moments and placement figures of the trace and of ``num_seeds`` synthetic ones."""
    from tqdm.auto import tqdm

    train, test, how = split(trace, held_out=HELD_OUT, seed=SPLIT_SEED)
    real = {**moments(test), **placement_figures(train, test)}
    rows = []
    for one in tqdm(range(seed, seed + num_seeds), desc="synthetic", delay=1, disable=not progress):
        first, second, _ = split(like(trace, parameters, one), held_out=HELD_OUT, seed=SPLIT_SEED)
        rows.append({**moments(second), **placement_figures(first, second)})
    said = {"request": "the half of the requests that was not fitted", "time": "the later half of one request"}
    return Comparison(
        model=trace.header.model, source=parameters.source, split=said.get(how["split"], "in sample"),
        num_tokens=test.num_tokens, num_requests=len(np.unique(test.tokens.request)), names=tuple(real),
        real=np.array(list(real.values())), synthetic=np.array([list(row.values()) for row in rows]),
    )  # fmt: skip
