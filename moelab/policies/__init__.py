"""Floor 1. One policy is one file with one compiled function of the one signature in ``signature``.

``POLICIES`` finds a policy by the name that a plan gives. A new policy is a new file with a ``POLICY``
and a line here.
"""

from __future__ import annotations

from moelab.policies import (
    arc,
    clock,
    eam,
    ema_lfu,
    fifo,
    gdsf,
    kt_dynamic,
    least_stale,
    lfru,
    lfu,
    lru,
    min_bypass,
    min_demand,
    mrs,
    prefetch_eam,
    prefetch_markov,
    prefetch_previous,
    prefetch_stale_gate,
    random,
    s3_fifo,
    second_touch,
    sieve,
    slru,
    static,
    w_tinylfu,
)
from moelab.policies.policy import Policy

_FILES = (
    static, kt_dynamic, fifo, random, lru, slru, clock, sieve, s3_fifo, arc, w_tinylfu, lfu, ema_lfu, lfru, gdsf, mrs,
    eam, least_stale, second_touch, prefetch_previous, prefetch_stale_gate, prefetch_markov, prefetch_eam, min_bypass,
    min_demand,
)  # fmt: skip
_ADMISSION = (ema_lfu.ADMIT_POLICY, lfru.ADMIT_POLICY, mrs.ADMIT_POLICY)

POLICIES: dict[str, Policy] = {p.name: p for p in (*(file.POLICY for file in _FILES), *_ADMISSION)}
"""Every policy by name; the ``admit_*`` are the same functions with an admission threshold by default."""

__all__ = ["POLICIES", "Policy"]
