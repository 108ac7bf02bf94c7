"""background: one piece of work at a time in a thread; a newer one ends the one before it.  Floor 6.

Work is told to report ``(what, share)``; the report raises ``Ended`` once the work is no longer wanted, so that it ends
at its next report. A planner does not report within its search: it ends after it, and its result is kept by the
exploration. Whether work is still wanted and what follows from it are one step under the widget's lock: nothing of old
work is shown after ``cancel`` or ``start`` has returned. Does not know what the work is.
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
    """``show(what, share)``, ``done`` and ``failed`` are called from the thread, holding ``lock`` (of the widget)."""

    def __init__(self, show: Report, lock: Any = None):
        self._show = show
        self._turn = 0
        self._one_at_a_time = threading.Lock()
        self._lock = threading.Condition(threading.RLock() if lock is None else lock)
        self._newest: threading.Thread | None = None
        self._running: set[threading.Thread] = set()

    def start(
        self,
        work: Callable[[Report], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        *,
        after_s: float = 0.0,
    ) -> None:
        """Run ``work`` after ``after_s`` unless something newer is started by then."""
        with self._lock:
            self._turn += 1
            arguments = (self._turn, work, done, failed, after_s)
            self._newest = threading.Thread(target=self._run, args=arguments, daemon=True)
            self._running.add(self._newest)
            self._newest.start()

    def cancel(self) -> None:
        """What runs ends at its next report; its result is dropped."""
        with self._lock:
            self._turn += 1

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the newest work; ``False`` where it still runs after ``timeout_s``.

        The lock is given away meanwhile, so that who holds the widget can wait too.
        """
        with self._lock:
            newest = self._newest
            return self._lock.wait_for(lambda: newest not in self._running, timeout_s)

    def _run(
        self,
        turn: int,
        work: Callable[[Report], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        after_s: float,
    ) -> None:
        try:
            time.sleep(after_s)
            with self._one_at_a_time:
                self._work(turn, work, done, failed)
        finally:
            with self._lock:
                self._running.discard(threading.current_thread())
                self._lock.notify_all()

    def _work(
        self,
        turn: int,
        work: Callable[[Report], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        last = 0.0

        def report(what: str, share: float) -> None:
            nonlocal last
            if turn != self._turn:
                raise Ended
            if time.monotonic() - last < _SECONDS_BETWEEN_REPORTS:
                return
            with self._lock:
                if turn != self._turn:
                    raise Ended
                last = time.monotonic()
                self._show(what, share)

        if turn != self._turn:
            return
        try:
            result, then = work(report), done
        except Ended:
            return
        except Exception as error:
            result, then = error, failed
        with self._lock:
            if turn == self._turn:
                then(result)
