"""Floor 4. ``replay(trace, plan)``: really execute the routed experts of a trace on this machine.

Prediction first, written down, then the measurement beside it; see ``replay.run``.
"""

from __future__ import annotations

from moelab.replay.result import ReplayResult, ReplayRow
from moelab.replay.run import replay

__all__ = ["ReplayResult", "ReplayRow", "replay"]
