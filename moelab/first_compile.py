"""first_compile: one line on standard error when Numba begins to compile for longer than a blink.

Machine code is cached on disk, so a machine sees this once, and again after an edit of the sources; without a word,
half a minute of a first command would look like a hang. Imported by whoever compiles; does not know what. Floor 0:
Numba and the standard library.
"""

from __future__ import annotations

import sys
import time

from numba.core.event import Event, Listener, register

PATIENCE_S = 1.5


class FirstCompile(Listener):
    """Adds up the time of compilations, and says so once when it passes ``PATIENCE_S``."""

    def __init__(self) -> None:
        self.depth, self.began, self.spent_s, self.is_told = 0, 0.0, 0.0, False

    def on_start(self, event: Event) -> None:
        self.depth += 1
        if self.depth == 1:
            self.began = time.perf_counter()

    def on_end(self, event: Event) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.spent_s += time.perf_counter() - self.began
            if self.spent_s > PATIENCE_S and not self.is_told:
                self.is_told = True
                print("moelab: compiling for this CPU, once; the first time takes up to a minute", file=sys.stderr)


LISTENER = FirstCompile()
register("numba:compile", LISTENER)
