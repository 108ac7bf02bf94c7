"""CopyThread: fills slots beside the computation, one expert after the other, in the order they were asked for.

Every request for a slot has a ticket. A slot may be read only while its last ticket is the one that arrived: so no slot
is read before or during its copy, nor the expert that lay there before. A copy whose expert was evicted before it began
is left out and counted as superseded. What the thread raises is raised again by the next call from outside, and the
thread then stops. It does not know devices or formats (`copy` does) or why an expert comes. Floor 2.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np


class CopyError(RuntimeError):
    """A copy to the fast tier failed; the cause is the thread's own error."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One expert on its way into a slot. `kind` as in the policy's log (admit, prefetch), -1 before the first step."""

    ticket: int
    slot: int
    layer: int
    expert: int
    clock: int
    kind: int
    after: Any = None


class CopyThread:
    """`copy(job)` fills a slot and returns the bytes that crossed the link; it runs in the thread only.

    `prepare` is called once in the thread before anything else. The counters `num_copied`, `num_superseded`,
    `link_bytes` and, with `keep_log`, `log` (rows clock, kind, layer, expert, 1 if it was copied) are the thread's own.
    `asked` and `arrived` int64 [S] are the tickets of each slot; the thread writes `arrived` only.
    """

    def __init__(
        self, num_slots: int, copy: Callable[[Copy], int], prepare: Callable[[], object], *, keep_log: bool
    ) -> None:
        self._copy, self._prepare = copy, prepare
        self._keep_log = keep_log
        self.asked, self.arrived = np.zeros((2, num_slots), np.int64)
        self._num_asked = self._num_over = 0
        self._queue: SimpleQueue[Copy | None] = SimpleQueue()
        self._changed = threading.Condition()
        self._error: tuple[Copy | None, BaseException] | None = None
        self.num_copied = self.num_superseded = self.link_bytes = 0
        self.log: list[tuple[int, int, int, int, int]] = []
        self._thread = threading.Thread(target=self._run, name="moelab fast tier copies", daemon=True)
        self._thread.start()

    # --- from outside ---

    def ask(self, slot: int, layer: int, expert: int, clock: int, kind: int, after: Any = None) -> None:
        """Fill a slot; returns at once."""
        self.check()
        self.asked[slot] += 1
        self._num_asked += 1
        self._queue.put(Copy(int(self.asked[slot]), slot, layer, expert, clock, kind, after))

    def forget(self, slot: int) -> None:
        """The expert of this slot was evicted: nothing that is still to come for it counts."""
        self.asked[slot] += 1

    def has_arrived(self, slot: int) -> bool:
        """May the slot be read? True until the next `ask` or `forget` of this slot."""
        return bool(self.arrived[slot] == self.asked[slot])

    def wait(self, slot: int) -> None:
        """Until the slot may be read."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_arrived(slot) or self._error is not None)
        self.check()

    def drain(self) -> None:
        """Until everything that was asked for is there."""
        self.settle()
        self.check()

    def settle(self) -> None:
        """Until the thread has nothing to do, or has stopped for an error."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_over == self._num_asked or self._error is not None)

    def check(self) -> None:
        """CopyError where the thread failed."""
        if self._error is not None:
            job, error = self._error
            what = "the copy thread could not start" if job is None else f"layer {job.layer} expert {job.expert}"
            raise CopyError(
                f"copy to the fast tier, {what}: {type(error).__name__}: {error}; give the engine its plan again"
            ) from error

    def close(self) -> None:
        """Copies that have begun end; what still waits is dropped."""
        for slot in range(len(self.asked)):
            self.forget(slot)
        self._queue.put(None)
        self._thread.join()

    # --- the thread ---

    def _run(self) -> None:
        job: Copy | None = None
        try:
            self._prepare()
            while (job := self._queue.get()) is not None:
                copied = job.ticket == self.asked[job.slot]
                if copied:
                    self.link_bytes += self._copy(job)
                    self.num_copied += 1
                else:
                    self.num_superseded += 1
                if self._keep_log and job.kind >= 0:
                    self.log.append((job.clock, job.kind, job.layer, job.expert, int(copied)))
                with self._changed:
                    if copied:
                        self.arrived[job.slot] = job.ticket
                    self._num_over += 1
                    self._changed.notify_all()
        except BaseException as error:  # given to the caller: check() raises it
            with self._changed:
                self._error = (job, error)
                self._changed.notify_all()
