"""Holder: one caller at a time, said aloud: who holds the engine, and what another thread is told meanwhile.  Floor 2.

A thread may hold it again inside. A step holds it while it runs; between the steps of a stream it is free, so that
streams may take turns. Does not know what the engine does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Holder:
    """``name`` of what is held, for the error: no reference to it, so that what is dropped goes at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._by: list[str] = []

    def check(self) -> None:
        """RuntimeError where another thread holds it."""
        if self._thread is not None and self._thread != threading.get_ident():
            self._refuse()

    @contextmanager
    def held(self, by: str) -> Iterator[None]:
        """Only this thread inside the block; ``by`` says to the others who that is. RuntimeError where one has it."""
        with self._lock:
            self.check()
            self._thread = threading.get_ident()
            self._by.append(by)
        try:
            yield
        finally:
            with self._lock:
                self._by.pop()
                if not self._by:
                    self._thread = None

    def _refuse(self) -> None:
        by = self._by[0] if self._by else "another thread"
        raise RuntimeError(
            f"engine of {self._name} is busy: expected one caller at a time, got a second while {by} has it; stop "
            "that, or wait for its end"
        )
