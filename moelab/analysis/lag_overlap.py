"""lag_overlap: how much of a token's experts the token ``lag`` places before it used too.  Floor 2.

``|A_t and A_(t - lag)| / |A_t|``, within one request and layer, beside three baselines: ``chance`` (K / E), two
tokens drawn from the pooled loads (``popularity``), two different tokens of the same request in any order
(``same_request``). What lies above ``same_request`` is persistence in time; what lies between the
last two is the request's own taste; a cache sees both. Does not know capacity (``miss_ratio_curve``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types

from moelab.analysis.bootstrap import NUM_SAMPLES, RequestLoads, basic_interval, resamples
from moelab.compiled_on_use import on_use
from moelab.domain.trace import NO_EXPERT, Trace

if TYPE_CHECKING:
    import pandas as pd

LAGS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, eq=False)
class LagOverlap:
    """``overlap`` float64 [L, len(lags)], ``mean`` [len(lags)] over layers with its interval ``low``, ``high`` (NaN
    where there is none); baselines ``popularity`` and ``same_request`` float64 [L], ``chance``. NaN where no request is
    longer than a lag.
    """

    model: str
    synthetic: bool
    lags: tuple[int, ...]
    overlap: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    popularity: np.ndarray
    same_request: np.ndarray
    chance: float
    num_requests: int

    def to_frame(self) -> pd.DataFrame:
        """One row for each lag, means over layers; baselines repeated."""
        import pandas as pd

        columns: dict[str, Any] = {
            "routing": "synthetic" if self.synthetic else "recorded",
            "lag_tokens": self.lags,
            "overlap": self.mean,
            "low": self.low,
            "high": self.high,
            "same_request": _mean(self.same_request),
            "popularity": _mean(self.popularity),
            "chance": self.chance,
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        return f"LagOverlap of {self.model}\n" + self.to_frame().to_string(index=False)

    def _repr_html_(self) -> str:
        return "<b>LagOverlap</b> (means over layers)" + self.to_frame().to_html(
            index=False, float_format="%.3f", na_rep=""
        )


def lag_overlap(
    trace: Trace,
    *,
    lags: tuple[int, ...] = LAGS,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    loads: RequestLoads | None = None,
) -> LagOverlap:
    """Overlap at each lag; tokens of a request in the order of their rows. ``loads`` where they were built before."""
    loads = loads if loads is not None else RequestLoads.of_trace(trace)
    order = np.argsort(trace.tokens.request, kind="stable")
    request = np.ascontiguousarray(trace.tokens.request[order])
    cluster = loads.cluster_of_token[order]
    experts = np.ascontiguousarray(trace.experts[order])
    shape = (loads.num_clusters, trace.header.num_layers, len(lags))
    shared, used = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    _count(experts, request, cluster, np.array(lags, np.int64), trace.header.num_experts, shared, used)
    overlap = _ratio(shared.sum(0), used.sum(0))
    weights = resamples(loads.num_clusters, num_samples, seed)
    flat = [np.tensordot(weights, part.astype(np.float32), axes=(1, 0)) for part in (shared, used)]
    mean = _mean(overlap)
    low, high = basic_interval(mean, _mean(_ratio(*flat)))
    return LagOverlap(
        model=trace.header.model,
        synthetic=trace.header.synthetic,
        lags=tuple(lags),
        overlap=overlap,
        mean=mean,
        low=low,
        high=high,
        popularity=_pair_overlap(loads.loads.sum(0, dtype=np.int64)[None], loads.num_tokens.sum(keepdims=True)),
        same_request=_pair_overlap(loads.loads, loads.num_tokens),
        chance=trace.header.top_k / trace.header.num_experts,
        num_requests=loads.num_requests,
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(by_layer: np.ndarray) -> np.ndarray:
    """Over layers: the last axis of [L], the one before the last of [..., L, lags]; NaN where all are."""
    axis = -1 if by_layer.ndim == 1 else -2
    known = np.isfinite(by_layer)
    return _ratio(np.where(known, by_layer, 0).sum(axis), known.sum(axis))


def _pair_overlap(loads: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """Share of a token's experts that another token of the same row of ``loads`` [R, L, E] uses; [L].

    Every row counts with its number of uses, as in the lag curve.
    """
    counts = loads.astype(np.float64)
    again = (counts * (counts - 1)).sum(2)  # uses, each with all other tokens that used the same expert
    others = np.maximum(num_tokens - 1, 0)[:, None] * counts.sum(2)
    weight = counts.sum(2)
    share = _ratio(again, others)
    known = np.isfinite(share)
    return _ratio(np.where(known, share * weight, 0).sum(0), np.where(known, weight, 0).sum(0))


_i64 = types.int64


@on_use(
    types.void(
        types.Array(types.uint16, 3, "C"), types.int32[::1], _i64[::1], _i64[::1], _i64, _i64[:, :, ::1],
        _i64[:, :, ::1],
    )
)  # fmt: skip
def _count(experts, request, cluster, lags, num_experts, shared, used):
    """Add the experts that token and earlier token share, and those of the token, by cluster, layer and lag."""
    num_tokens, num_layers, top_k = experts.shape
    for layer in range(num_layers):
        seen_at = np.full(num_experts, -1, np.int64)
        for index in range(len(lags)):
            lag = lags[index]
            seen_at[:] = -1
            for token in range(lag, num_tokens):
                if request[token - lag] != request[token]:
                    continue
                for slot in range(top_k):
                    expert = experts[token - lag, layer, slot]
                    if expert != NO_EXPERT:
                        seen_at[expert] = token
                for slot in range(top_k):
                    expert = experts[token, layer, slot]
                    if expert != NO_EXPERT:
                        used[cluster[token], layer, index] += 1
                        if seen_at[expert] == token:
                            shared[cluster[token], layer, index] += 1
