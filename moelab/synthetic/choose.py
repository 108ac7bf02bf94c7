"""choose: the k best of score + persistence + Gumbel noise, token after token: draws without replacement.  Floor 2.

The score is ``own + latent . direction``, computed here and not by a BLAS: the bits then do not depend on the
library, and no second thread pool spins beside others.

Adding Gumbel noise and taking the k largest draws k experts from a Plackett-Luce distribution (Yellott 1977).
The noise comes from a table of its 65,536 quantiles, four to each word of SplitMix64 (Steele, Lea and Flood
2014); the topmost quantile is drawn again with all bits, so that the tail, which decides for rare experts,
is the true one. Groups: a group's score is the sum of its two best experts, tokens choose within their best groups
(DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.2).
"""

from __future__ import annotations

import numpy as np
from numba import types

from moelab.compiled_on_use import on_use

_SIZE = 2**16
NOISE: np.ndarray = -np.log(-np.log((np.arange(_SIZE) + 0.5) / _SIZE)).astype(np.float32)
"""float32 [65536]: quantiles of the standard Gumbel distribution."""

_LEAST = np.float32(-1e30)


@on_use(types.uint64(types.uint64[::1]))
def _next(state):
    """One word of SplitMix64."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@on_use(types.float32(types.uint64[::1]))
def _tail(state):
    """A Gumbel draw beyond the last but one quantile: minus log of an exponential below its 65,536th part."""
    uniform = (np.float64(_next(state) >> np.uint64(11)) + 0.5) * 2.0**-53
    return np.float32(-np.log(-np.log1p(-uniform / 65536.0)))


@on_use(
    types.void(
        types.float32[:, ::1], types.float32[::1], types.float32[:, ::1], types.float32, types.int64, types.int64,
        types.uint64, types.Array(types.float32, 1, "C", readonly=True), types.uint16[:, ::1], types.float32[:, ::1],
    )
)  # fmt: skip
def choose(latent, own, direction, persistence, num_groups, groups_kept, seed, noise, experts, chosen):
    """One layer of one request: fill ``experts`` uint16 [T, K] in rank order, their scores ``chosen`` float32 [T, K].

    ``latent`` float32 [T, D], ``own`` float32 [E], ``direction`` float32 [D, E], ``noise`` is ``NOISE``.
    """
    num_tokens, latent_size = latent.shape
    num_experts = len(own)
    top_k = experts.shape[1]
    group_size = num_experts // num_groups
    group_score = np.zeros(num_groups, np.float32)
    is_kept = np.ones(num_groups, np.bool_)
    row = np.zeros(num_experts, np.float32)
    best = np.zeros(top_k, np.float32)
    who = np.zeros(top_k, np.int64)
    state = np.array([seed], np.uint64)
    for token in range(num_tokens):
        row[:] = own
        for axis in range(latent_size):
            weight = latent[token, axis]
            for expert in range(num_experts):
                row[expert] += weight * direction[axis, expert]
        if token > 0:
            for slot in range(top_k):
                row[who[slot]] += persistence
        word = np.uint64(0)
        for expert in range(num_experts):
            if expert & 3 == 0:
                word = _next(state)
            place = word & np.uint64(0xFFFF)
            word >>= np.uint64(16)
            row[expert] += _tail(state) if place == np.uint64(0xFFFF) else noise[place]
        if num_groups > 1:
            for group in range(num_groups):
                first, second = _LEAST, _LEAST
                for expert in range(group * group_size, (group + 1) * group_size):
                    if row[expert] > first:
                        second = first
                        first = row[expert]
                    elif row[expert] > second:
                        second = row[expert]
                group_score[group] = first + second
            is_kept[:] = False
            for _ in range(groups_kept):
                winner = -1
                for group in range(num_groups):
                    if not is_kept[group] and (winner < 0 or group_score[group] > group_score[winner]):
                        winner = group
                is_kept[winner] = True
        best[:] = _LEAST
        worst = _LEAST
        for expert in range(num_experts):
            score = row[expert]
            if score > worst and (num_groups == 1 or is_kept[expert // group_size]):
                slot = top_k - 1
                while slot > 0 and best[slot - 1] < score:
                    best[slot] = best[slot - 1]
                    who[slot] = who[slot - 1]
                    slot -= 1
                best[slot] = score
                who[slot] = expert
                worst = best[top_k - 1]
        for slot in range(top_k):
            experts[token, slot] = who[slot]
            chosen[token, slot] = best[slot]
