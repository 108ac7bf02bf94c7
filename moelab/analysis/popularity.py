"""popularity: loads of experts, what the hottest of them carry, and how even the rest is.  Floor 2.

Skew depends on scale: one request is far more skewed than thousands pooled, so every row says how many
tokens and requests it rests on. Does not know time order (``reuse``) or capacity (``miss_ratio_curve``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS = (0.10, 0.20, 0.25, 0.50)
ALL_DOMAINS = "all"


@dataclass(frozen=True, eq=False)
class Popularity:
    """Loads by domain. ``domains`` names the rows, the first is ``all``.

    ``loads`` int64 [D, L, E]; ``shares`` float64 [D, L, len(FRACTIONS)] the part of all routings that the
    hottest 10, 20, 25, 50% of a layer's experts take; ``entropy`` float64 [D, L] of the loads, 1 where even;
    NaN where a domain routed nothing there. ``num_tokens``, ``num_requests`` int64 [D].
    """

    model: str
    synthetic: bool
    domains: tuple[str, ...]
    loads: np.ndarray
    shares: np.ndarray
    entropy: np.ndarray
    num_tokens: np.ndarray
    num_requests: np.ndarray

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
        for i, fraction in enumerate(FRACTIONS):
            columns[f"share_of_top_{fraction:.0%}"] = self.shares[:, :, i].ravel()
        columns["normalised_entropy"] = self.entropy.ravel()
        return pd.DataFrame(columns)

    def summary(self) -> pd.DataFrame:
        """One row per domain, means over layers."""
        frame = self.to_frame().drop(columns=["layer"])
        return frame.groupby(["domain", "routing"], sort=False).mean().reset_index()

    def __repr__(self) -> str:
        return "Popularity (means over layers)\n" + self.summary().to_string(index=False)

    def _repr_html_(self) -> str:
        return "<b>Popularity</b> (means over layers)" + self.summary().to_html(index=False, float_format="%.3f")


def popularity(trace: Trace) -> Popularity:
    """Loads, shares of the hottest and normalised entropy, over all tokens and per domain.

    The hottest fraction f is ``max(1, round(f * E))`` experts.
    """
    header, tokens = trace.header, trace.tokens
    parts: list[tuple[str, Trace]] = [(ALL_DOMAINS, trace)]
    for index, name in enumerate(header.domains):
        rows = tokens.domain == index
        if rows.any():
            parts.append((name, trace.take(rows)))
    loads = np.stack([part.loads() for _, part in parts])
    return Popularity(
        model=header.model,
        synthetic=header.synthetic,
        domains=tuple(name for name, _ in parts),
        loads=loads,
        shares=np.stack([share_of_hottest(loads, fraction) for fraction in FRACTIONS], axis=2),
        entropy=normalised_entropy(loads),
        num_tokens=np.array([part.num_tokens for _, part in parts]),
        num_requests=np.array([len(np.unique(part.tokens.request)) for _, part in parts]),
    )


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
