"""Reads between the steps of a bench, by the best loop of the state that the memory is in.

Which loop is best depends on the state (``memory_states``). A read far from the rate at which its loop was chosen,
confirmed by another, means another state: the loop that was chosen in it is taken up again, or all loops are
measured. Reads carry the number of their choice, so that no step is compared across one. Floor 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.kernels import Pool, read_limit, read_nodes, read_once

# A rate that differs from that of the choice by more percent of the smaller is of another state: more than reads of one
# state differ by, less than half of the gap.
STATE_CHANGE = 25.0
# Measuring all loops takes 0.1 to 0.3 s. A machine that is never still must not spend the bench on it.
MAX_CHOICES = 4
MAX_TRIES = 2


@dataclass(frozen=True)
class Read:
    """One read: GB/s of all workers and of each node [N] (NaN without bytes); number of the choice of its loop."""

    gb_per_s: float
    gb_per_s_of_node: np.ndarray
    choice: int


@dataclass(frozen=True)
class Choice:
    """A loop, and the GB/s at which it was the best."""

    loop: int
    loop_name: str
    gb_per_s: float


def differ(rate: float, other: float) -> bool:
    return 100 * abs(rate - other) > STATE_CHANGE * min(rate, other)


def nearest_choice(choices: list[Choice], rate: float) -> int:
    """The one whose rate is nearest in ratio."""
    return int(np.argmin([abs(np.log(choice.gb_per_s / rate)) for choice in choices]))


def experts_beside(
    rng: np.random.Generator, num_experts: int, done: np.ndarray, coming: np.ndarray, count: int
) -> np.ndarray:
    """``count`` experts for a read between two steps, neither's where there are enough: no cache may help the three."""
    order = rng.permutation(num_experts)
    used = 2 * np.isin(order, done) + np.isin(order, coming)
    return np.sort(order[np.argsort(used, kind="stable")][:count])


class ReadReference:
    """Reads of ``expert_bytes`` at ``addresses`` [E]; ``nodes`` [E]: the node of each; by node if ``placed``."""

    def __init__(
        self, addresses: np.ndarray, expert_bytes: int, nodes: np.ndarray, pool: Pool, *, placed: bool
    ) -> None:
        self.addresses, self.expert_bytes, self.nodes = addresses, expert_bytes, nodes
        self.pool, self.placed = pool, placed
        self.choices: list[Choice] = []
        self.current = 0

    def choose(self, experts: np.ndarray) -> None:
        """Measures all loops on these experts; again if the memory changed its state meanwhile."""
        probe = self.choices[self.current].loop if self.choices else 0
        for _ in range(MAX_TRIES):
            before = self._rates(experts, probe)[0]
            best = read_limit(
                self.addresses[experts], self.expert_bytes, self.pool, rounds=3,
                node_of_address=self.nodes[experts] if self.placed else None,
            )  # fmt: skip
            if not differ(before, self._rates(experts, probe)[0]):
                break
        self.choices.append(Choice(best.loop, best.loop_name, best.gb_per_s))
        self.current = len(self.choices) - 1

    def read(self, experts: np.ndarray) -> Read:
        """One read of them; after a change of state by the loop of the new one."""
        rates = self._rates(experts, self.choices[self.current].loop)
        if self._is_elsewhere(rates):
            rates = self._rates(experts, self.choices[self.current].loop)  # one alone can be an interruption
        if self._is_elsewhere(rates):
            nearest = nearest_choice(self.choices, rates[0])
            if nearest != self.current:
                self.current = nearest
                rates = self._rates(experts, self.choices[nearest].loop)
            if self._is_elsewhere(rates) and len(self.choices) < MAX_CHOICES:
                self.choose(experts)
                rates = self._rates(experts, self.choices[self.current].loop)
        return Read(*rates, self.current)

    def most_used(self, reads: Sequence[Read]) -> str:
        """The loop that most of these reads were made by."""
        return self.choices[int(np.argmax(np.bincount([read.choice for read in reads])))].loop_name

    def _is_elsewhere(self, rates: tuple[float, np.ndarray]) -> bool:
        return differ(rates[0], self.choices[self.current].gb_per_s)

    def _rates(self, experts: np.ndarray, loop: int) -> tuple[float, np.ndarray]:
        """GB/s of all together until the last is done, and of each node."""
        addresses, nodes, expert_bytes = self.addresses[experts], self.nodes[experts], self.expert_bytes
        if not self.placed:
            rate = len(addresses) * expert_bytes / read_once(addresses, expert_bytes, loop, self.pool) / 1e9
            return rate, np.array([rate])
        seconds = read_nodes(addresses, nodes, expert_bytes, loop, self.pool)
        num_bytes = expert_bytes * np.bincount(nodes, minlength=self.pool.num_nodes)
        rates = np.full(self.pool.num_nodes, np.nan)
        np.divide(num_bytes, 1e9 * seconds, out=rates, where=seconds > 0)
        return float(np.nansum(rates)), rates
