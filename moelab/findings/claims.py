"""Claims: what papers and engines say of one policy beside another, as far as a recorded trace can judge it.  Floor 5.

Each is in our words, from abstracts and documentation, not from full texts: their models, capacities and engines differ
from the traces here, so a claim that does not hold on a trace is not refuted where it was made. A claim whose
policies did not run is left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """``better`` has more hits than ``worse``, says ``source``; in slots per layer, or in one pool for all layers."""

    better: str
    worse: str
    says: str
    source: str
    scope: str = "layer"


CLAIMS = (
    Claim("lfu", "lru", "frequency hits more than recency", "Liang et al. 2025, arXiv 2511.05814"),
    Claim("mrs", "lru", "a cache scored by router weights hits more", "HybriMoE, Zhong et al. 2025, arXiv 2504.05897"),
    Claim("eam", "lru", "activation-aware caching of the request hits more", "MoE-Infinity, arXiv 2401.14361"),
    Claim("lfru", "lru", "frequency over recency hits more", "colibri, vLLM pull request 37190"),
    Claim("least_stale", "lru", "evicting by pass hits more", "SpecMD, Hoang et al., arXiv 2602.03921", "global"),
    Claim("static", "lru", "the popular experts are worth pinning", "Fiddler, arXiv 2402.07033; KTransformers"),
    Claim("prefetch_previous", "lru", "the previous token foretells the next", "BigMoeOnEdge, mlx-lm 1485"),
    Claim("prefetch_markov", "lru", "one layer foretells the next", "arXiv 2510.05497"),
    Claim("s3_fifo", "lru", "quick demotion hits more (of web and storage traces)", "Yang et al. 2023 (SOSP)"),
    Claim("sieve", "lru", "lazy promotion hits more (of web traces)", "Zhang et al. 2024 (NSDI)"),
    Claim("w_tinylfu", "lru", "admission by frequency hits more (of storage traces)", "Einziger et al. 2017"),
)  # fmt: skip
