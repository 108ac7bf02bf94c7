"""coactivation: which experts of a layer serve the same tokens, beyond what their loads explain.  Floor 2.

*Lift* is the count of a pair over its expectation under independence given the loads and given that every
token uses K different experts: ``c n_i n_j / T`` with c such that the pairs add up to T K (K - 1) / 2. Rare pairs
have wild lifts, so they are shrunk towards 1: the posterior mean ``(count + a) / (expected + a)`` under a gamma
prior of mean 1 (DuMouchel 1999, with one gamma), a by moments from the layer's own spread. That takes tokens for
independent, which those of one request are not; so the top pairs are those with the largest *excess*, ``count -
expected`` tokens, which no single request makes alone, and their intervals draw requests. Overfitting is
shown, not hidden: the pairs that one half of the requests finds are scored on the other half.

``adjacent``: the share that the most frequent 20% of the E x E expert pairs of neighbouring layers take, beside
the same share for the product of the loads (Ruan et al. 2025, arXiv 2510.05497, count that way).
Does not know placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types

from moelab.analysis.bootstrap import NUM_SAMPLES, RequestLoads, basic_interval, resamples
from moelab.compiled_on_use import on_use
from moelab.domain.counts import CountsTable
from moelab.domain.trace import NO_EXPERT, Trace

if TYPE_CHECKING:
    import pandas as pd

NUM_TOP = 20
TOP_PAIR_SHARE = 0.20


@dataclass(frozen=True, eq=False)
class Coactivation:
    """``counts`` and ``expected`` [L, E, E], symmetric with an empty diagonal; ``prior`` float64 [L] is a.

    ``top`` int64 [N, 3]: (layer, lower, higher expert) by falling excess, with ``top_low`` and ``top_high`` [N], the
    interval of the plain lift. ``found``, ``held_out`` float64 [L]: mean lift of the E pairs that half of the requests
    finds, on that half and on the other; NaN with one request. ``adjacent``, ``adjacent_expected`` float64 [L - 1].
    ``is_whole`` is False for a table that kept only some pairs.
    """

    model: str
    synthetic: bool
    counts: np.ndarray
    expected: np.ndarray
    prior: np.ndarray
    top: np.ndarray
    top_low: np.ndarray
    top_high: np.ndarray
    found: np.ndarray
    held_out: np.ndarray
    adjacent: np.ndarray
    adjacent_expected: np.ndarray
    num_tokens: int
    is_whole: bool = True

    def shrunk_lift(self) -> np.ndarray:
        """float64 [L, E, E], NaN on the diagonal."""
        return _shrunk(self.counts, self.expected, self.prior)

    def to_frame(self) -> pd.DataFrame:
        """The top pairs."""
        import pandas as pd

        at = tuple(self.top.T)
        count, expected = self.counts[at], self.expected[at]
        columns: dict[str, Any] = {
            "routing": "synthetic" if self.synthetic else "recorded",
            "layer": self.top[:, 0],
            "expert_a": self.top[:, 1],
            "expert_b": self.top[:, 2],
            "tokens": count,
            "expected_tokens": expected,
            "lift": np.divide(count, expected, out=np.full(len(count), np.nan), where=expected > 0),
            "low": self.top_low,
            "high": self.top_high,
            "shrunk_lift": (count + self.prior[self.top[:, 0]]) / (expected + self.prior[self.top[:, 0]]),
        }
        return pd.DataFrame(columns)

    def summary(self) -> dict[str, float | None]:
        """Means over layers; plain values."""
        values = {
            "pairs_found_lift": _nan_mean(self.found),
            "pairs_held_out_lift": _nan_mean(self.held_out),
            "adjacent_top_20%_pair_share": _nan_mean(self.adjacent),
            "adjacent_top_20%_pair_share_of_independence": _nan_mean(self.adjacent_expected),
            "prior_mean": _nan_mean(self.prior),
        }
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

    def __repr__(self) -> str:
        return f"Coactivation of {self.model}\n" + self.to_frame().to_string(index=False)

    def _repr_html_(self) -> str:
        return "<b>Coactivation</b> (top pairs)" + self.to_frame().to_html(index=False, float_format="%.3g", na_rep="")


def coactivation(
    trace: Trace,
    *,
    num_top: int = NUM_TOP,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    loads: RequestLoads | None = None,
) -> Coactivation:
    """Pairs within layers and between neighbouring layers. ``loads`` where they were built before."""
    loads = loads if loads is not None else RequestLoads.of_trace(trace)
    num_experts, num_tokens = trace.header.num_experts, trace.num_tokens
    half_of_cluster = np.zeros(max(1, loads.num_clusters), bool)
    half_of_cluster[np.random.default_rng(seed).permutation(loads.num_clusters)[: loads.num_clusters // 2]] = True
    half = half_of_cluster[loads.cluster_of_token].astype(np.int64)
    experts = np.ascontiguousarray(trace.experts)
    by_half = _symmetric(_count_pairs(experts, half, num_experts))
    counts = by_half.sum(0)
    all_loads = loads.loads.sum(0, dtype=np.int64)
    expected = expected_pairs(all_loads, counts, num_tokens)
    prior = np.array([gamma_prior(c, e) for c, e in zip(counts, expected, strict=True)])
    top = _top_pairs(counts - expected, num_top)
    at = tuple(top.T)
    low, high = _lift_intervals(trace, loads, top, counts[at] / expected[at], num_samples, seed)
    found, held_out = _two_halves(by_half, half, loads, half_of_cluster)
    adjacent, adjacent_expected = _adjacent(experts, all_loads, num_experts)
    return Coactivation(
        model=trace.header.model, synthetic=trace.header.synthetic, counts=counts, expected=expected, prior=prior,
        top=top, top_low=low, top_high=high, found=found, held_out=held_out, adjacent=adjacent,
        adjacent_expected=adjacent_expected, num_tokens=num_tokens,
    )  # fmt: skip


def coactivation_of_counts(table: CountsTable, *, num_top: int = NUM_TOP) -> Coactivation | None:
    """From the pairs that a counts table kept, ``None`` where it kept none.

    Pairs that were left out stay 0, so only the top pairs mean something; no intervals, nothing held out,
    no neighbouring layers, and a prior from the kept pairs alone, which shrinks less than it should.
    """
    if not len(table.pairs):
        return None
    counts = np.zeros((table.num_layers, table.num_experts, table.num_experts), np.int64)
    layer, low, high, count = table.pairs.T
    counts[layer, low, high] = counts[layer, high, low] = count
    total = table.num_tokens * table.top_k * (table.top_k - 1)
    expected = expected_pairs(table.loads, np.full((table.num_layers, 1, 1), total), table.num_tokens)
    prior = np.array([gamma_prior(c[c > 0], e[c > 0]) for c, e in zip(counts, expected, strict=True)])
    nothing = np.full(table.num_layers, np.nan)
    top = _top_pairs(np.where(counts > 0, counts - expected, np.nan), num_top)
    return Coactivation(
        model=table.model, synthetic=table.synthetic, counts=counts, expected=expected, prior=prior, top=top,
        top_low=np.full(len(top), np.nan), top_high=np.full(len(top), np.nan), found=nothing, held_out=nothing,
        adjacent=nothing[1:], adjacent_expected=nothing[1:], num_tokens=table.num_tokens, is_whole=False,
    )  # fmt: skip


def expected_pairs(loads: np.ndarray, counts: np.ndarray, num_tokens: int) -> np.ndarray:
    """float64 [L, E, E]: pairs under independence, in sum as many as ``counts`` [L, ...]; diagonal 0."""
    product = loads[:, :, None].astype(np.float64) * loads[:, None, :] / max(1, num_tokens)
    diagonal = np.arange(loads.shape[1])
    product[:, diagonal, diagonal] = 0
    total = product.sum((1, 2))
    scale = np.divide(counts.reshape(len(loads), -1).sum(1), total, out=np.zeros_like(total), where=total > 0)
    return product * scale[:, None, None]


def gamma_prior(counts: np.ndarray, expected: np.ndarray) -> float:
    """a of the gamma prior by moments: E[(count - expected)^2] = expected + expected^2 / a; large where no spread."""
    spread = ((counts - expected) ** 2 - expected).sum()
    return float(np.clip((expected**2).sum() / spread, 1e-3, 1e9)) if spread > 0 else 1e9


def top_share(counts: np.ndarray, share: float) -> float:
    """Part of all counts that the largest ``share`` of the cells take; NaN where there are none."""
    flat = np.sort(counts.ravel())[::-1]
    total = flat.sum()
    return float(flat[: max(1, round(share * flat.size))].sum() / total) if total else float("nan")


def _shrunk(counts: np.ndarray, expected: np.ndarray, prior: np.ndarray) -> np.ndarray:
    a = prior[:, None, None]
    lift = (counts + a) / (expected + a)
    diagonal = np.arange(counts.shape[1])
    lift[:, diagonal, diagonal] = np.nan
    return lift


def _symmetric(upper: np.ndarray) -> np.ndarray:
    return upper + upper.swapaxes(-1, -2)


def _top_pairs(excess: np.ndarray, num_top: int) -> np.ndarray:
    """int64 [N, 3], by falling excess [L, E, E], ties by place; each pair once, NaN never."""
    _, num_experts, _ = excess.shape
    low, high = np.triu_indices(num_experts, 1)
    flat = np.nan_to_num(excess[:, low, high], nan=-np.inf).ravel()
    chosen = np.argsort(-flat, kind="stable")[:num_top]
    chosen = chosen[flat[chosen] > -np.inf]
    layer, pair = np.divmod(chosen, max(1, len(low)))
    return np.stack([layer, low[pair], high[pair]], axis=1).astype(np.int64)


def _lift_intervals(
    trace: Trace, loads: RequestLoads, top: np.ndarray, lift: np.ndarray, num_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the plain lift [N] of the top pairs, requests drawn again; expectations follow the drawn loads."""
    weights = resamples(loads.num_clusters, num_samples, seed)
    samples = np.full((len(weights), len(top)), np.nan)

    def by_cluster(values: np.ndarray) -> np.ndarray:
        return np.bincount(loads.cluster_of_token, values, minlength=loads.num_clusters)

    for i, (layer, a, b) in enumerate(top if len(weights) else ()):
        ids = trace.experts[:, layer]
        routed = (ids != NO_EXPERT).sum(1)
        together = weights @ by_cluster((ids == a).any(1) & (ids == b).any(1))
        pairs = weights @ by_cluster(routed * (routed - 1.0))
        drawn = weights @ loads.loads[:, layer].astype(np.float64)
        product = drawn.sum(1) ** 2 - (drawn**2).sum(1)  # of all ordered pairs of two different experts
        expected = np.divide(pairs * drawn[:, a] * drawn[:, b], product, out=np.zeros(len(pairs)), where=product > 0)
        samples[:, i] = np.divide(together, expected, out=np.full(len(pairs), np.nan), where=expected > 0)
    low, high = basic_interval(lift, samples)
    return np.maximum(low, 0), high


def _two_halves(
    by_half: np.ndarray, half: np.ndarray, loads: RequestLoads, half_of_cluster: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean lift of the E pairs with the largest excess in the first half: there, and in the other half."""
    _, num_layers, num_experts, _ = by_half.shape
    found, held_out = np.full(num_layers, np.nan), np.full(num_layers, np.nan)
    if loads.num_clusters < 2:
        return found, held_out
    expected = np.stack(
        [
            expected_pairs(
                loads.loads[half_of_cluster == bool(part)].sum(0, dtype=np.int64), by_half[part], (half == part).sum()
            )
            for part in (0, 1)
        ]
    )
    for layer in range(num_layers):
        at = tuple(_top_pairs((by_half[0, layer] - expected[0, layer])[None], num_experts)[:, 1:].T)
        for part, out in ((0, found), (1, held_out)):
            whole = expected[part, layer][at].sum()
            out[layer] = by_half[part, layer][at].sum() / whole if whole > 0 else np.nan
    return found, held_out


def _adjacent(experts: np.ndarray, loads: np.ndarray, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Top-20% share of the pairs of each two neighbouring layers, and of the product of their loads."""
    num_pairs = len(loads) - 1
    seen, expected = np.full(num_pairs, np.nan), np.full(num_pairs, np.nan)
    for layer in range(num_pairs):
        seen[layer] = top_share(_count_between(experts, layer, num_experts), TOP_PAIR_SHARE)
        expected[layer] = top_share(np.outer(loads[layer], loads[layer + 1]), TOP_PAIR_SHARE)
    return seen, expected


def _nan_mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


_i64 = types.int64


@on_use(_i64[:, :, :, ::1](types.Array(types.uint16, 3, "C", readonly=True), _i64[::1], _i64))
def _count_pairs(experts, half, num_experts):
    """[2, L, E, E], the lower expert first."""
    num_tokens, num_layers, top_k = experts.shape
    counts = np.zeros((2, num_layers, num_experts, num_experts), np.int64)
    for layer in range(num_layers):
        for token in range(num_tokens):
            for i in range(top_k):
                a = experts[token, layer, i]
                if a == NO_EXPERT:
                    continue
                for j in range(i + 1, top_k):
                    b = experts[token, layer, j]
                    if b != NO_EXPERT:
                        counts[half[token], layer, min(a, b), max(a, b)] += 1
    return counts


@on_use(_i64[:, ::1](types.Array(types.uint16, 3, "C", readonly=True), _i64, _i64))
def _count_between(experts, layer, num_experts):
    """[E, E]: tokens that used an expert of ``layer`` and one of the next."""
    num_tokens, _, top_k = experts.shape
    counts = np.zeros((num_experts, num_experts), np.int64)
    for token in range(num_tokens):
        for i in range(top_k):
            a = experts[token, layer, i]
            if a == NO_EXPERT:
                continue
            for j in range(top_k):
                b = experts[token, layer + 1, j]
                if b != NO_EXPERT:
                    counts[a, b] += 1
    return counts
