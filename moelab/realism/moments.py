"""moments(trace): the few figures by which synthetic routing is fitted to real routing.  Floor 4.

Every one depends on how many tokens and requests there are, so two traces are compared at the same
requests and lengths only (``compare`` sees to that).
"""

from __future__ import annotations

import numpy as np

from moelab.analysis.bootstrap import RequestLoads
from moelab.analysis.coactivation import coactivation
from moelab.analysis.lag_overlap import lag_overlap
from moelab.analysis.popularity import METRICS, popularity
from moelab.analysis.stability import HOT_SHARE, hot_set_jaccard
from moelab.domain.trace import Trace

_TOP20 = METRICS.index(f"share_of_top_{HOT_SHARE:.0%}")


def moments(trace: Trace) -> dict[str, float]:
    """Means over layers, NaN where the trace cannot say (one domain, requests shorter than a lag).

    ``pooled_top_20%`` and ``request_top_20%``: shares of the hottest fifth, of all tokens and of one request;
    ``overlap_lag_N``; ``domain_jaccard`` of the hottest fifths of two domains; ``adjacent_pair_share`` of the most
    frequent fifth of the expert pairs of neighbouring layers; ``pair_lift`` of the E pairs with the largest excess.
    """
    loads = RequestLoads.of_trace(trace)
    shares = popularity(trace, num_samples=0, loads=loads)
    lags = lag_overlap(trace, num_samples=0, loads=loads)
    pairs = coactivation(trace, num_samples=0, loads=loads)
    by_domain = shares.loads[1:]
    jaccard = [
        hot_set_jaccard(by_domain[i], by_domain[j]).mean()
        for i in range(len(by_domain))
        for j in range(i + 1, len(by_domain))
    ]
    return {
        "pooled_top_20%": float(shares.means[0, _TOP20]),
        "request_top_20%": float(shares.of_one_request[0, _TOP20]),
        **{f"overlap_lag_{lag}": float(value) for lag, value in zip(lags.lags, lags.mean, strict=True)},
        "domain_jaccard": float(np.mean(jaccard)) if jaccard else float("nan"),
        "adjacent_pair_share": float(pairs.adjacent[np.isfinite(pairs.adjacent)].mean())
        if len(pairs.adjacent)
        else float("nan"),
        "pair_lift": float(pairs.found[np.isfinite(pairs.found)].mean())
        if np.isfinite(pairs.found).any()
        else float("nan"),
    }
