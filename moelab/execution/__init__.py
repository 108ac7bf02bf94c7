"""Floor 4. ``moelab.replay(trace, plan)``: really execute the routed experts of a trace on this machine.

Prediction first, written down, then the measurement beside it; see ``execution.replay``. (The room is not
called replay, because a package of that name would hide the function.)
"""

from __future__ import annotations

from moelab.execution.result import ReplayResult, ReplayRow

__all__ = ["ReplayResult", "ReplayRow"]
