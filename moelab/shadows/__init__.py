"""Floor 4. Candidate policies on the routing of a running engine, without acting: what they would have read."""

from __future__ import annotations

from moelab.shadows.result import ShadowResult
from moelab.shadows.shadow import shadow

__all__ = ["ShadowResult", "shadow"]
