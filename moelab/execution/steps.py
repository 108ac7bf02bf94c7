"""Steps: the forward passes of a trace as the engine would run them, and which of them a replay takes.

Knows that the tokens of one step run together. Floor 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import NO_EXPERT, Trace

CHUNK_STEPS = 16
"""Steps are taken in runs of this many, spread evenly over the trace, so that every request may occur."""


@dataclass(frozen=True)
class Steps:
    """Token rows of each taken step, in trace order: step i has rows ``start[i]`` to ``start[i + 1]``."""

    start: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.start[-1])

    def rows_of(self, step: int) -> np.ndarray:
        return self.rows[self.start[step] : self.start[step + 1]]


def take_steps(trace: Trace, num_tokens: int | None) -> Steps:
    """About ``num_tokens`` tokens (at least one step; ``None``: all) as runs of whole steps."""
    _, first, counts = np.unique(trace.tokens.step, return_index=True, return_counts=True)
    chosen = np.arange(len(first))
    if num_tokens is not None and num_tokens < trace.num_tokens:
        num_steps = max(1, round(num_tokens / counts.mean()))
        num_chunks = max(1, round(num_steps / CHUNK_STEPS))
        length = -(-num_steps // num_chunks)
        starts = np.linspace(0, max(0, len(first) - length), num_chunks).astype(np.int64)
        chosen = np.unique((starts[:, None] + np.arange(length)).ravel())
        chosen = chosen[chosen < len(first)]
    sizes = counts[chosen]
    rows = np.concatenate([np.arange(first[i], first[i] + counts[i]) for i in chosen])
    return Steps(start=np.concatenate([[0], np.cumsum(sizes)]), rows=rows)


def distinct_experts(expert_ids: np.ndarray) -> np.ndarray:
    """Distinct routed experts of one layer-step [T, K], in rising order."""
    distinct = np.unique(expert_ids)
    return distinct[distinct != NO_EXPERT]
