"""Candidate: one plan whose policy sees every layer-step of an engine and moves nothing.  Floor 4.

Counts are kept by user request: where several requests share a step, each has a part of it by its tokens (and they are
drawn together, see ``result``). Knows no engine and no other candidate.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moelab.domain.plan import Plan
from moelab.domain.trace import CANDIDATE_SCORES, STALE_GATE, Phase
from moelab.policies.counts import LAYER_STEPS, NUM_COLUMNS, ROUTINGS
from moelab.policies.session import PolicySession


class Candidate:
    """``of_request[r]`` float64 [phases, L, 9] (columns in ``policies.counts``).

    ``steps`` (with ``keep_log``) has int64 [L, 8] for each step.
    """

    def __init__(self, name: str, plan: Plan, *, keep_log: bool = False) -> None:
        self.name, self.plan = name, plan
        self.session = PolicySession(plan)
        self.of_request: dict[int, np.ndarray] = {}
        self.steps: list[np.ndarray] | None = [] if keep_log else None

    def see(
        self, expert_ids: np.ndarray, gate_weights: np.ndarray, phase: Phase, flags: int, step: int,
        share_of_request: dict[int, float], extras: Mapping[str, np.ndarray],
    ) -> None:  # fmt: skip
        """One step: uint16 ids and float16 gate weights [T, L, K]; `extras` as in `Trace`, what its policy reads."""
        session = self.session
        reads = session.policy.reads
        scores = extras[CANDIDATE_SCORES] if CANDIDATE_SCORES in reads else None
        stale = extras[STALE_GATE] if STALE_GATE in reads else None
        counts = np.zeros((session.num_layers, NUM_COLUMNS + 1), np.int64)
        for layer in range(session.num_layers):
            session.ask(
                expert_ids, gate_weights, layer=layer, step=step, flags=flags, place=layer,
                candidate_scores=None if scores is None else scores[:, layer],
                stale_experts=None if stale is None or layer + 1 == stale.shape[1] else stale[:, layer + 1],
            )  # fmt: skip
            counts[layer, :NUM_COLUMNS] = session.counts
        counts[:, LAYER_STEPS] = counts[:, ROUTINGS] > 0
        if self.steps is not None:
            self.steps.append(counts[:, :NUM_COLUMNS])
        for request, share in share_of_request.items():
            if request not in self.of_request:
                self.of_request[request] = np.zeros((len(Phase), *counts.shape))
            self.of_request[request][phase] += share * counts
