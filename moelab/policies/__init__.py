"""Floor 1. One policy is one file with one compiled function of the one signature in ``signature``.

``POLICIES`` finds a policy by the name that a plan gives. A new policy is a new file with a ``POLICY``
and a line here.
"""

from __future__ import annotations

from moelab.policies import clock, fifo, lru, min_bypass, random, sieve, static
from moelab.policies.policy import Policy

_MODULES = (static, fifo, random, lru, clock, sieve, min_bypass)

POLICIES: dict[str, Policy] = {module.POLICY.name: module.POLICY for module in _MODULES}

__all__ = ["POLICIES", "Policy"]
