"""Uploader: copies experts beside the workers, on a core of its own, as a link's DMA would read them. Floor 3.

A stand-in where there is no device: it reads the home memory like one and writes memory too, which a link does not.
Begin and end of each copy are noted, so that rates can be taken within any window. Does not know policies.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np


class Uploader:
    """``core``: where its thread sits, ``None``: anywhere; ``slots``: memory to copy into, uint8 [bytes], by turns."""

    def __init__(self, slots: Sequence[np.ndarray], core: int | None) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []
        self.num_bytes: list[int] = []
        self._slots, self._core = slots, core
        self._jobs: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._num_put = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, sources: Sequence[np.ndarray]) -> int:
        """Copy these, in order, after what was put before; the number of all copies put so far."""
        for source in sources:
            self._jobs.put((source.ctypes.data, len(source)))
        self._num_put += len(sources)
        return self._num_put

    @property
    def num_done(self) -> int:
        return len(self.ends)

    @property
    def idle(self) -> bool:
        return self.num_done == self._num_put

    def wait(self, num_copies: int | None = None) -> None:
        """Until so many copies (default: all) have arrived; spins, because a sleep is longer than a copy."""
        wanted = self._num_put if num_copies is None else num_copies
        while len(self.ends) < wanted:
            time.sleep(0)

    def start_s(self, first: int, asked: float, seen: float) -> float:
        """What the copies since number ``first`` took beyond copying: asked for at ``asked`` of an idle thread, seen to
        be there at ``seen``.
        """
        return (self.begins[first] - asked) + (seen - self.ends[-1])

    def _work(self) -> None:
        if self._core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {self._core})
        while (job := self._jobs.get()) is not None:
            slot = self._slots[len(self.ends) % len(self._slots)]
            self.begins.append(time.perf_counter())
            ctypes.memmove(slot.ctypes.data, job[0], min(job[1], len(slot)))
            self.num_bytes.append(job[1])
            self.ends.append(time.perf_counter())

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
