"""Lossy: what an engine may do to a model's results on purpose, for speed; never shown without its cost in NLL.

Cache-aware routing (`cache_bias`): an expert on the fast tier gets a bonus when the router chooses, so that fewer
experts are read from home. Skliar, van Rozendaal et al. 2024, "Mixture of Cache-Conditional Experts" (arXiv
2412.00099), its cache prior: score + lambda x D x [expert is resident], D the running mean of the range of the layer's
scores, gate weights those of the router without the bonus, the first J experts always kept. Where we differ: the score
is the one that chooses (DeepSeek-V3: sigmoid plus bias); D is the mean over all tokens that the layer has routed since
the mode began.

Expert deferral (`num_deferred`): of each token the experts of the smallest gate weights are added one MoE layer later,
so that a CPU could compute them beside the next attention; the last MoE layer defers nothing. KTransformers (Chen et
al., SOSP 2025), `max_deferred_experts_per_token`. Where we differ: each token keeps its own best (there an expert that
any token of the batch keeps is kept for all).

Knows numbers only, no engine. Floor 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LARGEST_BIAS = 100.0


@dataclass(frozen=True)
class Lossy:
    """The defaults change nothing.

    `cache_bias`: lambda, 0 to `LARGEST_BIAS`; near 1 hardly any expert outside wins against a resident one.
    `num_protected`: J, experts of a token that no bonus displaces. `num_deferred`: experts of a token that come a layer
    later. `prefill`: also in prefill steps; those read most experts anyway, so that there is little to gain.
    ValueError for numbers outside.
    """

    cache_bias: float = 0.0
    num_protected: int = 1
    num_deferred: int = 0
    prefill: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cache_bias) and 0 <= self.cache_bias <= LARGEST_BIAS):
            raise ValueError(
                f"cache_bias is {self.cache_bias}, expected 0 (exact) to {LARGEST_BIAS:g}; from about 1 on it "
                "displaces every expert that is not protected"
            )
        for name in ("num_protected", "num_deferred"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more experts of a token")

    def check_top_k(self, top_k: int) -> None:
        """ValueError where a token has fewer experts than are protected or deferred."""
        for name in ("num_protected", "num_deferred"):
            if getattr(self, name) > top_k:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at most {top_k}, the experts of a token")

    def __str__(self) -> str:
        parts = []
        if self.cache_bias:
            parts.append(f"cache-aware routing with bias {self.cache_bias:g}, {self.num_protected} protected")
        if self.num_deferred:
            parts.append(f"{self.num_deferred} deferred experts of a token")
        where = "prefill and decode" if self.prefill else "decode"
        return f"lossy in {where}: {', '.join(parts)}" if parts else "exact"
