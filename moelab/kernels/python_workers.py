"""Workers as Python threads, where there is no native library. The work must release the GIL.

Runs one function on all workers and waits. Does not know forks, owners or nodes (see ``pool``). Floor 1: the standard
library.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

_release = type(threading.Lock()).release


class PythonWorkers:
    """Workers 1.. are threads on ``cores[worker]`` (``None``: anywhere); worker 0 is the caller of ``run``."""

    def __init__(self, cores: list[int | None]) -> None:
        self.num_workers = len(cores)
        self._pinned = [False] * self.num_workers
        self._function: Callable[[int, int], object] | None = None
        self._run_number = 0
        self._finished = [0] * self.num_workers
        self._errors: list[BaseException] = []
        self._start = [threading.Lock() for _ in range(self.num_workers)]
        self._done = [threading.Lock() for _ in range(self.num_workers)]
        for lock in self._start + self._done:
            lock.acquire()
        self._threads = []
        for worker in range(1, self.num_workers):
            thread = threading.Thread(
                target=self._work, args=(worker, cores[worker]), name=f"moelab-worker-{worker}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        for worker in range(1, self.num_workers):
            self._done[worker].acquire()
        self.pinned = all(self._pinned[1:])

    def _work(self, worker: int, core: int | None) -> None:
        self._pinned[worker] = _pin(core)
        start, done = self._start[worker], self._done[worker]
        done.release()
        while True:
            start.acquire()
            if self._function is None:
                return
            try:
                self._function(worker, self.num_workers)
            except BaseException as error:  # carried to the caller by run
                self._errors.append(error)
            run_number = self._run_number
            done.release()
            self._finished[worker] = run_number

    def run(self, function: Callable[[int, int], object]) -> None:
        """The caller's own exception, or the first of another worker, is raised after all have finished; Ctrl-C too."""
        self._function = function
        self._errors.clear()
        self._run_number += 1
        interrupt: KeyboardInterrupt | None = None
        worker, starts = 1, map(_release, self._start[1:])
        try:
            list(starts)  # one call: when Ctrl-C comes, all of them are started
            function(0, self.num_workers)
        finally:
            # In this function: at the start of another one Ctrl-C would be raised before its block.
            while worker < self.num_workers:
                try:
                    while worker < self.num_workers:
                        if interrupt is None:
                            self._done[worker].acquire()
                        else:  # taken already, perhaps: asked by number, as often as it takes
                            while self._finished[worker] != self._run_number:
                                time.sleep(1e-4)
                            self._done[worker].acquire(blocking=False)
                        worker += 1
                except KeyboardInterrupt as error:
                    interrupt = error
        if interrupt is not None:
            raise interrupt
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """End the workers and wait for them."""
        self._function = None
        for lock in self._start[1:]:
            lock.release()
        for thread in self._threads:
            thread.join()


def _pin(core: int | None) -> bool:
    """Put the calling thread on ``core``; says whether it sits there."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        return False
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        return False
    return True
