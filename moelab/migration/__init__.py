"""Floor 4. A plan becomes what a running engine does: ``apply`` moves experts between nodes and to fast tiers."""

from __future__ import annotations

from moelab.migration.apply import apply
from moelab.migration.result import Applied

__all__ = ["Applied", "apply"]
