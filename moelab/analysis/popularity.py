"""popularity: loads of experts, what the hottest of them carry, and how even the rest is.  Floor 2.

Skew depends on scale: one request is far more skewed than thousands pooled, so every row says how many
tokens and requests it rests on, and ``of_one_request`` stands beside the pooled figure. Intervals are a bootstrap
over requests (``bootstrap``). Does not know time order (``reuse``) or capacity (``miss_ratio_curve``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.analysis.bootstrap import NUM_SAMPLES, RequestLoads, basic_interval, resamples
from moelab.domain.counts import CountsTable
from moelab.domain.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS = (0.10, 0.20, 0.25, 0.50)
ALL_DOMAINS = "all"


METRICS = (*(f"share_of_top_{fraction:.0%}" for fraction in FRACTIONS), "gini", "normalised_entropy")
"""Names of the last axis of ``Popularity.values``."""


@dataclass(frozen=True, eq=False)
class Popularity:
    """Loads by domain and what they say. ``domains`` names the rows, the first is ``all``.

    ``loads`` int64 [D, L, E]; ``values`` float64 [D, L, len(METRICS)]: the part of all routings that the hottest 10,
    20, 25, 50% of a layer's experts take, the Gini coefficient (0 even) and the normalised entropy (1 even); NaN where
    a domain routed nothing there. ``means``, ``low``, ``high`` float64 [D, len(METRICS)]: means over layers and their
    interval, NaN without one. ``of_one_request`` float64 [D, len(METRICS)]: the same means of single requests,
    weighted by their tokens, NaN for counts. ``num_tokens``, ``num_requests`` int64 [D]; 0 requests: not known.
    """

    model: str
    synthetic: bool
    domains: tuple[str, ...]
    loads: np.ndarray
    values: np.ndarray
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    of_one_request: np.ndarray
    num_tokens: np.ndarray
    num_requests: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """float64 [D, L, len(FRACTIONS)]."""
        return self.values[:, :, : len(FRACTIONS)]

    @property
    def entropy(self) -> np.ndarray:
        """float64 [D, L]."""
        return self.values[:, :, METRICS.index("normalised_entropy")]

    def to_frame(self) -> pd.DataFrame:
        """One row per domain and layer."""
        import pandas as pd

        num_domains, num_layers = self.loads.shape[:2]
        index = np.repeat(np.arange(num_domains), num_layers)
        columns: dict[str, Any] = {
            "routing": "synthetic" if self.synthetic else "recorded",
            "domain": np.array(self.domains)[index],
            "layer": np.tile(np.arange(num_layers), num_domains),
            "tokens": self.num_tokens[index],
            "requests": self.num_requests[index],
            "routings": self.loads.sum(2).ravel(),
            "experts_used": (self.loads > 0).sum(2).ravel(),
        }
        for i, name in enumerate(METRICS):
            columns[name] = self.values[:, :, i].ravel()
        return pd.DataFrame(columns)

    def summary(self) -> pd.DataFrame:
        """One row per domain and metric, means over layers, with interval."""
        import pandas as pd

        index = np.repeat(np.arange(len(self.domains)), len(METRICS))
        columns: dict[str, Any] = {
            "routing": "synthetic" if self.synthetic else "recorded",
            "domain": np.array(self.domains)[index],
            "metric": np.tile(METRICS, len(self.domains)),
            "value": self.means.ravel(),
            "low": self.low.ravel(),
            "high": self.high.ravel(),
            "of_one_request": self.of_one_request.ravel(),
            "tokens": self.num_tokens[index],
            "requests": self.num_requests[index],
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        return "Popularity (means over layers)\n" + self.summary().to_string(index=False)

    def _repr_html_(self) -> str:
        return "<b>Popularity</b> (means over layers)" + self.summary().to_html(
            index=False, float_format="%.3f", na_rep=""
        )


def popularity(
    trace: Trace, *, num_samples: int = NUM_SAMPLES, seed: int = 0, loads: RequestLoads | None = None
) -> Popularity:
    """Loads, shares of the hottest, Gini coefficient and entropy, over all tokens and per domain.

    The hottest fraction f is ``max(1, round(f * E))`` experts. ``loads`` where they were built before.
    """
    header = trace.header
    loads = loads if loads is not None else RequestLoads.of_trace(trace)
    present = [index for index in range(len(header.domains)) if (trace.tokens.domain == index).any()]
    rows = [np.ones(loads.num_clusters, bool), *(loads.domain == index for index in present)]
    pooled = np.stack([loads.loads[mine].sum(0, dtype=np.int64) for mine in rows])
    values = metrics(pooled)
    means = _mean_over_layers(values)
    low, high = np.full(means.shape, np.nan), np.full(means.shape, np.nan)
    for row, mine in enumerate(rows):
        weights = resamples(int(mine.sum()), num_samples, seed)
        if not len(weights):
            continue
        samples = np.zeros((len(weights), header.num_layers, len(METRICS)))
        for layer in range(header.num_layers):
            samples[:, layer] = metrics(weights @ loads.loads[mine, layer].astype(np.float32))
        low[row], high[row] = basic_interval(means[row], _mean_over_layers(samples))
    return Popularity(
        model=header.model,
        synthetic=header.synthetic,
        domains=(ALL_DOMAINS, *(header.domains[index] for index in present)),
        loads=pooled,
        values=values,
        means=means,
        low=np.clip(low, 0, 1),
        high=np.clip(high, 0, 1),
        of_one_request=_of_one_request(loads, rows),
        num_tokens=np.array([loads.num_tokens[mine].sum() for mine in rows]),
        num_requests=np.array([loads.num_requests if mine.all() else _requests(trace, mine, loads) for mine in rows]),
    )


def popularity_of_counts(table: CountsTable) -> Popularity:
    """The same of a counts table; without requests there is no interval."""
    values = metrics(table.loads[None])
    nothing = np.full((1, len(METRICS)), np.nan)
    return Popularity(
        model=table.model, synthetic=table.synthetic, domains=(ALL_DOMAINS,), loads=table.loads[None], values=values,
        means=_mean_over_layers(values), low=nothing, high=nothing, of_one_request=nothing,
        num_tokens=np.array([table.num_tokens]), num_requests=np.array([0]),
    )  # fmt: skip


def metrics(loads: np.ndarray) -> np.ndarray:
    """[..., E] -> float64 [..., len(METRICS)]."""
    shares = [share_of_hottest(loads, fraction) for fraction in FRACTIONS]
    return np.stack([*shares, gini(loads), normalised_entropy(loads)], axis=-1)


def _mean_over_layers(values: np.ndarray) -> np.ndarray:
    """[..., L, M] -> [..., M], layers without load left out."""
    known = np.isfinite(values)
    count = known.sum(-2)
    return np.divide(np.where(known, values, 0).sum(-2), count, out=np.full(count.shape, np.nan), where=count > 0)


def _of_one_request(loads: RequestLoads, rows: list[np.ndarray]) -> np.ndarray:
    """[D, M]; NaN where requests were grouped."""
    out = np.full((len(rows), len(METRICS)), np.nan)
    if loads.requests_per_cluster == 1 and loads.num_clusters:
        each = np.stack([_mean_over_layers(metrics(one)) for one in loads.loads])
        for row, mine in enumerate(rows):
            if mine.any():
                out[row] = np.average(each[mine], axis=0, weights=np.maximum(loads.num_tokens[mine], 1))
    return out


def _requests(trace: Trace, mine: np.ndarray, loads: RequestLoads) -> int:
    return len(np.unique(trace.tokens.request[mine[loads.cluster_of_token]]))


def share_of_hottest(loads: np.ndarray, fraction: float) -> np.ndarray:
    """Part of the load on the hottest ``max(1, round(fraction * E))`` experts; [..., E] -> [...]."""
    count = max(1, round(fraction * loads.shape[-1]))
    hottest = np.sort(loads, axis=-1)[..., ::-1][..., :count].sum(-1)
    total = loads.sum(-1)
    return np.divide(hottest, total, out=np.full(total.shape, np.nan), where=total > 0)


def normalised_entropy(loads: np.ndarray) -> np.ndarray:
    """Shannon entropy of the loads over log E: 1 even, 0 one expert; NaN without load; [..., E] -> [...]."""
    total = loads.sum(-1, keepdims=True)
    p = np.divide(loads, total, out=np.full(loads.shape, np.nan), where=total > 0)
    terms = -p * np.log(p, out=np.zeros_like(p), where=p > 0)
    num_experts = loads.shape[-1]
    return terms.sum(-1) / np.log(num_experts) if num_experts > 1 else np.ones(loads.shape[:-1])


def gini(loads: np.ndarray) -> np.ndarray:
    """Gini coefficient of the loads: 0 even, (E - 1) / E one expert; NaN without load; [..., E] -> [...]."""
    rising = np.sort(loads, axis=-1).astype(np.float64)
    num_experts = loads.shape[-1]
    total = rising.sum(-1)
    ranked = (rising * np.arange(1, num_experts + 1)).sum(-1)
    value = np.divide(2 * ranked, num_experts * total, out=np.full(total.shape, np.nan), where=total > 0)
    return value - (num_experts + 1) / num_experts
