"""stability: do hot experts stay hot, in time, between domains, and on requests that were not looked at?  Floor 2.

Three questions, each beside what chance alone would show. *Windows* of the trace in order: divergence of a
window's loads from those of all others. *Domains*: the same for each domain. Both stand beside a null, the
divergence after requests were shuffled over the groups, because two finite samples of one
distribution differ too; drift is what exceeds the null's 95%. *Split-half*: the hottest 20% of one half of the requests
and what they carry on the other half, which is what a static plan gets.

Divergence: Jensen and Shannon's, in bits, 0 equal, 1 disjoint (Lin 1991). Hot set: the hottest 20% of a layer;
overlap of two hot sets: Jaccard's. One request: windows cut it in time and there is no null. Does not
know policies.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.analysis.bootstrap import NUM_SAMPLES, RequestLoads, basic_interval, resamples
from moelab.analysis.popularity import share_of_hottest
from moelab.domain.trace import NO_EXPERT, Trace

if TYPE_CHECKING:
    import pandas as pd

HOT_SHARE = 0.20
NUM_WINDOWS = 8
NUM_NULL = 100
NUM_SPLITS = 50


@dataclass(frozen=True, eq=False)
class Groups:
    """Windows or domains against all other tokens; arrays of length G, means over layers.

    ``js`` bits with ``low``, ``high`` (interval) and ``null``, ``null_95`` (mean and 95% of the shuffled); ``jaccard``
    of the hot sets and ``jaccard_null``; NaN where requests are too few. ``js_matrix``, ``jaccard_matrix`` [G, G].
    """

    kind: str
    names: tuple[str, ...]
    num_tokens: np.ndarray
    num_requests: np.ndarray
    js: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null: np.ndarray
    null_95: np.ndarray
    jaccard: np.ndarray
    jaccard_null: np.ndarray
    js_matrix: np.ndarray
    jaccard_matrix: np.ndarray

    @property
    def drifts(self) -> np.ndarray:
        """bool [G]: beyond 95% of the shuffled."""
        return self.js > self.null_95


@dataclass(frozen=True, eq=False)
class Stability:
    """``windows`` and ``domains`` (``None`` without two of them); split-half arrays of length S, means over layers.

    ``in_sample``: share of the hottest 20% on the half that chose them, ``held_out`` on the other half,
    ``hot_set_jaccard`` of the two halves' own hot sets. ``split`` is ``request``, ``time`` (one request) or ``none``.
    """

    model: str
    synthetic: bool
    windows: Groups | None
    domains: Groups | None
    in_sample: np.ndarray
    held_out: np.ndarray
    hot_set_jaccard: np.ndarray
    split: str

    def to_frame(self) -> pd.DataFrame:
        """One row for each window and domain."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for groups in (self.windows, self.domains):
            if groups is None:
                continue
            for i, name in enumerate(groups.names):
                row: dict[str, Any] = {"routing": "synthetic" if self.synthetic else "recorded"}
                row |= {"kind": groups.kind, "group": name}
                row |= {"tokens": groups.num_tokens[i], "requests": groups.num_requests[i]}
                columns = ("js", "low", "high", "null", "null_95", "jaccard", "jaccard_null")
                row |= {
                    f"{column}_bits" if column == "js" else column: getattr(groups, column)[i] for column in columns
                }
                rows.append(row | {"drift": bool(groups.drifts[i])})
        return pd.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """Split-half medians with the 2.5 and 97.5% of the splits; plain values."""
        out: dict[str, Any] = {"split": self.split, "splits": len(self.held_out)}
        for name in ("in_sample", "held_out", "hot_set_jaccard"):
            values = getattr(self, name)
            label = name if name == "hot_set_jaccard" else f"share_of_top_20%_{name}"
            low, middle, high = np.quantile(values, (0.025, 0.5, 0.975)) if len(values) else (np.nan,) * 3
            out |= {label: float(middle), f"{label}_low": float(low), f"{label}_high": float(high)}
        return out

    def __repr__(self) -> str:
        lines = [f"  {name}: {value}" for name, value in self.summary().items()]
        return "\n".join([f"Stability of {self.model}", *lines, self.to_frame().to_string(index=False)])

    def _repr_html_(self) -> str:
        halves = ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in self.summary().items())
        return f"<b>Stability</b> ({halves})" + self.to_frame().to_html(index=False, float_format="%.3f", na_rep="")


def stability(
    trace: Trace,
    *,
    num_windows: int = NUM_WINDOWS,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    loads: RequestLoads | None = None,
) -> Stability:
    """Windows of about equal tokens, domains, and random halves of the requests. ``loads`` where built before."""
    loads = loads if loads is not None else RequestLoads.of_trace(trace)
    num_windows = max(1, min(num_windows, trace.num_tokens))
    windows: Groups | None
    if loads.num_clusters >= 2 * num_windows:
        window = np.minimum((loads.num_tokens.cumsum() - 1) * num_windows // max(1, trace.num_tokens), num_windows - 1)
        names = tuple(f"window {i + 1}" for i in range(num_windows))
        windows = _groups("window", names, window, loads, num_samples, seed)
    else:
        windows = _windows_in_time(trace, loads, num_windows)
    present = np.unique(loads.domain[loads.domain >= 0])
    domains = None
    if len(present) > 1:
        label = np.searchsorted(present, loads.domain)
        label[loads.domain < 0] = -1
        names = tuple(trace.header.domains[i] for i in present)
        domains = _groups("domain", names, label, loads, num_samples, seed)
    in_sample, held_out, jaccard, split = _split_half(trace, loads, seed)
    return Stability(trace.header.model, trace.header.synthetic, windows, domains, in_sample, held_out, jaccard, split)


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divergence in bits of two tables of loads, over the last axis; NaN where one is empty; [..., E] -> [...]."""
    p, q = _distribution(a), _distribution(b)
    return _entropy_bits((p + q) / 2) - (_entropy_bits(p) + _entropy_bits(q)) / 2


def hot_set_jaccard(a: np.ndarray, b: np.ndarray, share: float = HOT_SHARE) -> np.ndarray:
    """Jaccard overlap of the hottest ``max(1, round(share * E))`` experts, ties to the lower id; [..., E] -> [...]."""
    both = (hot_set(a, share) & hot_set(b, share)).sum(-1)
    size = max(1, round(share * a.shape[-1]))
    return both / (2 * size - both)


def hot_set(loads: np.ndarray, share: float = HOT_SHARE) -> np.ndarray:
    """bool [..., E]: the hottest ``max(1, round(share * E))`` experts, ties to the lower id."""
    num_experts = loads.shape[-1]
    size = max(1, round(share * num_experts))
    unique = loads.astype(np.float64) * num_experts - np.arange(num_experts)  # exact: loads are whole and below 2**40
    chosen = np.argpartition(unique, num_experts - size, axis=-1)[..., num_experts - size :]
    out = np.zeros(loads.shape, bool)
    np.put_along_axis(out, chosen, True, axis=-1)
    return out


def _distribution(loads: np.ndarray) -> np.ndarray:
    total = loads.sum(-1, keepdims=True, dtype=np.float64)
    return np.divide(loads, total, out=np.full(loads.shape, np.nan), where=total > 0)


def _entropy_bits(p: np.ndarray) -> np.ndarray:
    logarithm = np.log2(p, out=np.zeros_like(p), where=p > 0)
    return -(p * logarithm).sum(-1)


def _mean_divergence(group: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Mean over layers; [..., L, E] -> [...]."""
    js = jensen_shannon(group, rest)
    known = np.isfinite(js)
    count = known.sum(-1)
    return np.divide(np.where(known, js, 0).sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def _against_rest(group: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(divergence, jaccard), means over layers; [..., L, E] -> [...]."""
    return _mean_divergence(group, rest), hot_set_jaccard(group, rest).mean(-1)


def _matrices(pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """js and jaccard [G, G] between groups [G, L, E]."""
    size = len(pooled)
    js, jaccard = np.zeros((size, size)), np.ones((size, size))
    for i in range(size):
        for j in range(i + 1, size):
            js[i, j], jaccard[i, j] = _against_rest(pooled[i], pooled[j])
            js[j, i], jaccard[j, i] = js[i, j], jaccard[i, j]
    return js, jaccard


def _groups(
    kind: str, names: tuple[str, ...], label: np.ndarray, loads: RequestLoads, num_samples: int, seed: int
) -> Groups:
    """Groups of requests by ``label`` [R] (-1: in none, but in the rest), their null and intervals."""
    rng = np.random.default_rng(seed)
    num_groups = len(names)
    everything = loads.loads.sum(0, dtype=np.int64)
    flat = loads.loads.reshape(loads.num_clusters, -1).astype(np.float32)

    def pooled(weights: np.ndarray) -> np.ndarray:
        return (weights @ flat).reshape(*weights.shape[:-1], *everything.shape)

    member = (label[None] == np.arange(num_groups)[:, None]).astype(np.float32)
    mine = pooled(member)
    js, jaccard = _against_rest(mine, everything - mine)
    null, null_jaccard = np.zeros((NUM_NULL, num_groups)), np.zeros((NUM_NULL, num_groups))
    for i in range(NUM_NULL):
        shuffled = pooled(member[:, rng.permutation(loads.num_clusters)])
        null[i], null_jaccard[i] = _against_rest(shuffled, everything - shuffled)
    low, high = np.full(num_groups, np.nan), np.full(num_groups, np.nan)
    for group in range(num_groups):
        inside = np.flatnonzero(member[group])
        outside = np.flatnonzero(member[group] == 0)
        drawn = resamples(len(inside), min(num_samples, NUM_NULL), seed)
        others = resamples(len(outside), min(num_samples, NUM_NULL), seed + 1)
        if not len(drawn) or not len(others):
            continue
        shape = (len(drawn), *everything.shape)
        a, b = (drawn @ flat[inside]).reshape(shape), (others @ flat[outside]).reshape(shape)
        samples = np.array([_mean_divergence(one, other) for one, other in zip(a, b, strict=True)])
        low[group], high[group] = basic_interval(js[group], samples)
    js_matrix, jaccard_matrix = _matrices(mine)
    return Groups(
        kind=kind, names=names, num_tokens=(member @ loads.num_tokens).astype(np.int64),
        num_requests=member.sum(1).astype(np.int64) * loads.requests_per_cluster, js=js, low=np.maximum(low, 0),
        high=np.maximum(high, 0), null=null.mean(0), null_95=np.quantile(null, 0.95, axis=0), jaccard=jaccard,
        jaccard_null=null_jaccard.mean(0), js_matrix=js_matrix, jaccard_matrix=jaccard_matrix,
    )  # fmt: skip


def _loads_of_rows(trace: Trace, rows: slice) -> np.ndarray:
    """int64 [L, E] of some tokens."""
    num_experts = trace.header.num_experts
    loads = np.zeros((trace.header.num_layers, num_experts), np.int64)
    for layer in range(len(loads)):
        ids = trace.experts[rows, layer].ravel()
        loads[layer] = np.bincount(ids[ids != NO_EXPERT], minlength=num_experts)
    return loads


def _windows_in_time(trace: Trace, loads: RequestLoads, num_windows: int) -> Groups | None:
    """Too few requests to fill windows with: the rows are cut in time, without null or interval."""
    if num_windows < 2:
        return None
    cuts = np.linspace(0, trace.num_tokens, num_windows + 1).astype(int)
    mine = np.stack([_loads_of_rows(trace, slice(a, b)) for a, b in pairwise(cuts)])
    js, jaccard = _against_rest(mine, mine.sum(0) - mine)
    js_matrix, jaccard_matrix = _matrices(mine)
    requests = [len(np.unique(trace.tokens.request[a:b])) for a, b in pairwise(cuts)]
    nothing = np.full(num_windows, np.nan)
    names = tuple(f"window {i + 1} (in time)" for i in range(num_windows))
    return Groups(
        "window", names, np.diff(cuts), np.array(requests), js, nothing, nothing, nothing, nothing, jaccard, nothing,
        js_matrix, jaccard_matrix,
    )  # fmt: skip


def _split_half(trace: Trace, loads: RequestLoads, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """(in sample, held out, jaccard, how) over random halves, or the one split in time of a single request."""
    everything = loads.loads.sum(0, dtype=np.int64)
    if loads.num_clusters >= 2:
        rng = np.random.default_rng(seed)
        size = loads.num_clusters // 2
        first = [
            loads.loads[rng.permutation(loads.num_clusters)[:size]].sum(0, dtype=np.int64) for _ in range(NUM_SPLITS)
        ]
        how = "request"
    elif trace.num_tokens >= 2:
        first, how = [_loads_of_rows(trace, slice(0, trace.num_tokens // 2))], "time"
    else:
        return np.zeros(0), np.zeros(0), np.zeros(0), "none"
    a = np.stack(first)
    b = everything - a
    on_other = np.where(hot_set(a), b, 0).sum(-1)
    total = b.sum(-1)
    held_out = np.divide(on_other, total, out=np.full(total.shape, np.nan), where=total > 0)
    in_sample = share_of_hottest(a, HOT_SHARE)
    return np.nanmean(in_sample, -1), np.nanmean(held_out, -1), hot_set_jaccard(a, b).mean(-1), how
