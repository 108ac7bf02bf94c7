"""Pool: the only object that creates threads. N workers, of which the caller is worker 0.

Runs one function on all workers and waits. Threads are Python threads: the work must release the GIL
(Numba ``nogil`` or ctypes). Workers 1.. are pinned to their core where the system allows it, the caller
never is. Does not know kernels. Floor 1: the standard library and ``domain.machine``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from moelab.domain.machine import allowed_cores


class Pool:
    """``num_workers`` defaults to the cores that affinity mask and cgroup quota leave, and is cut to them.

    ``pinned`` says whether workers 1.. sit on their own core. One ``run`` at a time; a second thread
    that calls ``run`` waits. After a fork the child has no workers: ``run`` raises there.
    """

    def __init__(self, num_workers: int | None = None, pin: bool = True) -> None:
        cores = allowed_cores()
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers: expected 1 or more; got {num_workers}")
        self.requested_workers = num_workers
        self.num_workers = min(num_workers or len(cores), len(cores))
        self.pinned = False
        self._process = os.getpid()
        self._closed = False
        self._busy = threading.Lock()
        self._owner: int | None = None
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
            core = cores[worker] if pin else None
            thread = threading.Thread(
                target=self._work, args=(worker, core), name=f"moelab-worker-{worker}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        for worker in range(1, self.num_workers):
            self._done[worker].acquire()

    def _work(self, worker: int, core: int | None) -> None:
        if core is not None and hasattr(os, "sched_setaffinity"):
            try:
                os.sched_setaffinity(0, {core})  # of the calling thread only
                self.pinned = True
            except OSError:
                self.pinned = False
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
        """Call ``function(worker, num_workers)`` on every worker, here as worker 0, and wait for all.

        The first exception of any worker is raised after all have finished. Raises ``RuntimeError`` when
        the pool is closed, was created by another process, or is called from inside a run.
        """
        if self._process != os.getpid():
            raise RuntimeError(
                f"pool belongs to process {self._process}; this is its fork {os.getpid()}: "
                "create a new Pool after forking"
            )
        if self._owner == threading.get_ident():
            raise RuntimeError("pool.run was called from inside a run of the same pool: use one level of run")
        with self._busy:
            if self._closed:
                raise RuntimeError("pool is closed: create a new Pool")
            self._owner = threading.get_ident()
            self._function = function
            self._errors.clear()
            self._run_number += 1
            try:
                for lock in self._start[1:]:
                    lock.release()
                try:
                    function(0, self.num_workers)
                finally:
                    self._wait()
            finally:
                self._owner = None
            if self._errors:
                raise self._errors[0]

    def _wait(self) -> None:
        """Wait for workers 1..; Ctrl-C is raised only after all have finished, or the next run would race."""
        interrupt: KeyboardInterrupt | None = None
        for worker in range(1, self.num_workers):
            try:
                self._done[worker].acquire()
            except KeyboardInterrupt as error:
                interrupt = error
                while self._finished[worker] != self._run_number:
                    time.sleep(1e-4)
                self._done[worker].acquire(blocking=False)
        if interrupt is not None:
            raise interrupt

    def close(self) -> None:
        """End the workers and wait for them. Twice is harmless; in a fork nothing is waited for."""
        if self._process != os.getpid():
            self._closed = True
            return
        with self._busy:
            if self._closed:
                return
            self._closed = True
            self._function = None
            for lock in self._start[1:]:
                lock.release()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"Pool({self.num_workers} workers, {'pinned' if self.pinned else 'not pinned'}, {state})"
