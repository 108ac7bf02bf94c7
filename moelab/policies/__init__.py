"""Floor 1. One policy is one file with one compiled function of the one signature in ``signature``.

``POLICIES`` finds a policy by the name that a plan gives. A new policy is a new file with a ``POLICY``
and a line here.
"""

from __future__ import annotations

from moelab.policies import lru, min_bypass, static
from moelab.policies.policy import Policy

POLICIES: dict[str, Policy] = {p.name: p for p in (static.POLICY, lru.POLICY, min_bypass.POLICY)}

__all__ = ["POLICIES", "Policy"]
