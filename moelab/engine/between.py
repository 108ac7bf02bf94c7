"""Between: all that happens between a layer's router and its experts, beyond computing them.

In this order: cache-aware routing (`domain.lossy`) may choose other experts, the fast tier takes its share of them, and
expert deferral puts some off to the next MoE layer. Without any of it a step goes straight on (`acts`). It also says
which optional arrays (candidate scores, stale gate) somebody has asked for. It does not compute experts. Floor 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from moelab.domain.lossy import Lossy
from moelab.domain.trace import CANDIDATE_SCORES, NO_EXPERT, STALE_GATE, Phase
from moelab.engine.router import Router
from moelab.engine.share import Share
from moelab.engine.step_routing import StepRouting

if TYPE_CHECKING:
    from moelab.engine.fast_tier.fast_tier import FastTier
    from moelab.policies.cache_aware import CacheAwareRouting


@dataclass(frozen=True, slots=True)
class Work:
    """What of a layer-step is added to its own layer, and to the next MoE layer (None: nothing)."""

    now: Share
    later: Share | None = None


class Between:
    """`routers` [L] are the model's. A new one is made whenever tier, mode or wishes change; one caller at a time.

    Of the one `before` it keeps what cache-aware routing has learned, where the mode is the same.
    """

    def __init__(
        self, routers: Sequence[Router], tier: FastTier | None = None, lossy: Lossy | None = None,
        extras: frozenset[str] = frozenset(), before: Between | None = None,
    ) -> None:  # fmt: skip
        self.tier, self.lossy, self.extras = tier, lossy, extras
        self.acts = tier is not None or lossy is not None
        self.defers = lossy is not None and lossy.num_deferred > 0
        self.wants_candidates = CANDIDATE_SCORES in extras
        self.needs_scores = self.wants_candidates or lossy is not None
        self.needs_stale = STALE_GATE in extras
        self.deferred: torch.Tensor | None = None  # of the MoE layer before, in steps by torch
        self._routers = list(routers)
        self._biases = [router.bias.cpu().numpy() for router in routers]
        self._shifts = np.stack([bias - bias.min() for bias in self._biases])[:, None] if routers else np.zeros(0)
        self._lossy_now = False
        self._cache_aware: CacheAwareRouting | None = None
        if lossy is not None and before is not None and before.lossy is lossy:
            self._cache_aware = before._cache_aware
        elif lossy is not None:
            # Here, because it imports all policies: an engine without them need not wait for that.
            from moelab.policies.cache_aware import CacheAwareRouting

            self._cache_aware = CacheAwareRouting(lossy, len(routers), len(self._biases[0]))

    def begin_step(self, phase: Phase, flags: int) -> None:
        """`divide` is called once for each MoE layer until `end_step`."""
        self.deferred = None
        self._lossy_now = self.lossy is not None and (self.lossy.prefill or phase is Phase.DECODE)
        if self.tier is not None:
            self.tier.begin_step(phase, flags)

    def end_step(self, *, failed: bool) -> None:
        if self.tier is not None:
            self.tier.end_step(failed=failed)

    def divide(
        self, layer: int, expert_ids: np.ndarray, gate_weights: np.ndarray, scores: np.ndarray | None,
        stale: np.ndarray | None,
    ) -> Work:  # fmt: skip
        """Who computes what. `expert_ids` int32 and `gate_weights` float32 [T, K] in rank order, changed IN PLACE.

        `scores` float32 [T, E] without bias, where `needs_scores`; `stale` ids [T, K] of the next MoE layer.
        """
        if self._lossy_now and self._cache_aware is not None and scores is not None:
            self._reroute(self._cache_aware, layer, expert_ids, gate_weights, scores)
        if self.tier is None:
            share = Share.all_at_home(expert_ids, gate_weights)
        else:
            candidates = None
            if self.wants_candidates and scores is not None:
                candidates = self.candidates(layer, scores).astype(np.float16)
            share = self.tier.serve(layer, expert_ids, gate_weights, candidates, stale)
        if self.lossy is None or not (self._lossy_now and self.defers) or layer + 1 == len(self._routers):
            return Work(share)
        later = last_by_gate_weight(gate_weights, self.lossy.num_deferred)
        return Work(share.part(~later), share.part(later))

    def compute(self, share: Share | None, x: torch.Tensor) -> torch.Tensor | None:
        """The device's part of the sum; see `FastTier.compute`."""
        return None if self.tier is None or share is None else self.tier.compute(share, x)

    def candidates(self, layers: int | slice, scores: np.ndarray) -> np.ndarray:
        """Scores float32 [..., E] of some layers, without bias, as a trace keeps them: ranking as the router does."""
        return scores + self._shifts[layers]

    def note_extras(
        self, routing: StepRouting, layers: int | slice, scores: np.ndarray | None, stale: np.ndarray | None
    ) -> None:
        """Write what observers asked for: scores of one layer [T, E], or of all [L, T, E]; `stale` of the same layers.

        `stale` of a layer was chosen in the MoE layer before it.
        """
        if routing.candidate_scores is not None and scores is not None:
            routing.candidate_scores[layers] = self.candidates(layers, scores)
        if routing.stale_gate_experts is not None and stale is not None:
            routing.stale_gate_experts[layers] = stale

    def _reroute(
        self, routing: CacheAwareRouting, layer: int, expert_ids: np.ndarray, gate_weights: np.ndarray,
        scores: np.ndarray,
    ) -> None:  # fmt: skip
        """Tokens whose experts stay keep their gate weights to the bit."""
        router = self._routers[layer]
        if router.n_group > 1:
            choice = router.choice(torch.from_numpy(scores).to(router.bias.device)).cpu().numpy()
        else:
            choice = scores + self._biases[layer]
        resident = np.zeros(scores.shape[1], bool) if self.tier is None else self.tier.state.resident[layer] != 0
        before = expert_ids.copy()
        routing.choose(layer, choice, resident, expert_ids)
        changed = np.flatnonzero((expert_ids != before).any(axis=1))
        if len(changed):
            ids, weights = expert_ids[changed], np.take_along_axis(scores[changed], expert_ids[changed], axis=1)
            if router.normalise:
                total = np.zeros(len(ids), np.float32)
                for rank in range(ids.shape[1]):  # in rank order, as the kernels add
                    total += weights[:, rank]
                weights = weights / (total + np.float32(1e-20))[:, None]
            gate_weights[changed] = weights * np.float32(router.scaling_factor)


def last_by_gate_weight(gate_weights: np.ndarray, count: int) -> np.ndarray:
    """bool [T, K]: the `count` smallest gate weights of each token; of equal ones the later ranks."""
    order = np.argsort(-gate_weights, axis=1, kind="stable")
    chosen = np.zeros(gate_weights.shape, bool)
    np.put_along_axis(chosen, order[:, gate_weights.shape[1] - count :], True, axis=1)
    return chosen


def unrouted(shape: tuple[int, ...]) -> np.ndarray:
    """int32 ids of nobody."""
    return np.full(shape, NO_EXPERT, np.int32)
