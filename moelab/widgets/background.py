"""background: one piece of work at a time in a thread; a newer one ends the one before it.  Floor 6.

Work is told to report ``(what, share)``; the report raises ``Ended`` once the work is no longer wanted, so that it ends
at its next report. A planner does not report within its search: it ends after it, and its result is kept by the
exploration. Does not know what the work is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

Report = Callable[[str, float], None]
_SECONDS_BETWEEN_REPORTS = 0.15


class Ended(Exception):
    """Raised inside work that is no longer wanted."""


class Background:
    """``show(what, share)`` is called from the thread, some times a second."""

    def __init__(self, show: Report):
        self._show = show
        self._turn = 0
        self._one_at_a_time = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(
        self,
        work: Callable[[Report], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        *,
        after_s: float = 0.0,
    ) -> None:
        """Run ``work`` after ``after_s`` unless something newer is started by then."""
        self._turn += 1
        self._thread = threading.Thread(target=self._run, args=(self._turn, work, done, failed, after_s), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """What runs ends at its next report; its result is dropped."""
        self._turn += 1

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the newest work; ``False`` where it still runs after ``timeout_s``."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _run(
        self,
        turn: int,
        work: Callable[[Report], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        after_s: float,
    ) -> None:
        time.sleep(after_s)
        last = 0.0

        def report(what: str, share: float) -> None:
            nonlocal last
            if turn != self._turn:
                raise Ended
            if time.monotonic() - last >= _SECONDS_BETWEEN_REPORTS:
                last = time.monotonic()
                self._show(what, share)

        with self._one_at_a_time:
            if turn != self._turn:
                return
            try:
                result = work(report)
            except Ended:
                return
            except Exception as error:
                if turn == self._turn:
                    failed(error)
                return
            if turn == self._turn:
                done(result)
