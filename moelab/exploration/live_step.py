"""live_step: what one token of a running engine was: which experts it used and what was read and moved for it.

Floor 4. A plain record. Does not know the engine; who fills it is ``live_run``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import Phase
from moelab.policies.counts import HITS, LATE, MISSES, PREFETCHES, ROUTED_HITS, ROUTINGS, UPLOADS


@dataclass(frozen=True, eq=False)
class LiveStep:
    """One generated token and the forward passes that led to it: the prefill for the first, else one decode step.

    ``experts`` int32 [L, T, K] that the T fed tokens routed to; ``bytes_of_node`` int64 [N] and ``seconds_of_node``
    [N]: what the kernels counted for routed experts; ``tier_counts`` int64 [8] (columns of ``policies.counts``, sums
    over layers), zeros without a fast tier; ``seconds``: wall time.
    """

    number: int
    phase: Phase
    token_id: int
    piece: str
    experts: np.ndarray
    bytes_of_node: np.ndarray
    seconds_of_node: np.ndarray
    tier_counts: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class LiveTotals:
    """Sums over the steps of one phase: ``num_steps``, their ``seconds``, and as of ``LiveStep`` the others."""

    num_steps: int
    seconds: float
    bytes_of_node: np.ndarray
    seconds_of_node: np.ndarray
    tier_counts: np.ndarray

    def plus(self, step: LiveStep) -> LiveTotals:
        """The sum with one more step, of the same nodes."""
        return LiveTotals(
            self.num_steps + 1, self.seconds + step.seconds, self.bytes_of_node + step.bytes_of_node,
            self.seconds_of_node + step.seconds_of_node, self.tier_counts + step.tier_counts,
        )  # fmt: skip

    @property
    def tok_per_s(self) -> float | None:
        """Of wall time; ``None`` without a step."""
        return self.num_steps / self.seconds if self.num_steps else None

    @property
    def gb_per_s_of_node(self) -> list[float]:
        """Bytes over the time until the node's last worker was done, as ``engine.bandwidth`` has it."""
        known = self.seconds_of_node > 0
        rates = np.divide(self.bytes_of_node / 1e9, self.seconds_of_node, out=np.zeros(len(known)), where=known)
        return [float(rate) for rate in rates]

    @property
    def bytes_per_token_of_node(self) -> list[float]:
        """Mean over the steps."""
        return [float(each) for each in self.bytes_of_node / max(1, self.num_steps)]

    @property
    def node_imbalance(self) -> float | None:
        """Bytes of the fullest node over the mean of the nodes; ``None`` where nothing was read."""
        mean = float(self.bytes_of_node.mean())
        return float(self.bytes_of_node.max()) / mean if mean else None

    def tier(self) -> dict[str, int | float | None]:
        """Counts of the fast tier by name."""
        counts = self.tier_counts.tolist()
        distinct = counts[HITS] + counts[MISSES]
        return {
            "hits": counts[HITS],
            "misses": counts[MISSES],
            "late": counts[LATE],
            "uploads": counts[UPLOADS],
            "prefetches": counts[PREFETCHES],
            "hit_rate_per_routing": counts[ROUTED_HITS] / counts[ROUTINGS] if counts[ROUTINGS] else None,
            "hit_rate_per_request": counts[HITS] / distinct if distinct else None,
        }
