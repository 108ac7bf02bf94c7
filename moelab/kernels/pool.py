"""Pool: the only object that creates threads. N workers, of which the caller is worker 0.

Runs one function, or one native layer-step, on all workers and waits. Workers are threads of the native library, or
Python threads where there is none (the work must release the GIL). Workers 1.. are pinned to their core where the
system allows it. The caller never is: setting its affinity for the length of a call and setting it back takes 4.5
microseconds on its core and 31 from another (docs/log.md, 2026-11-27, many tokens of an expert), as long as a layer
call. It reads what lies on node 0 wherever the scheduler has it; ``caller_place`` says where that is. Does not know
kernels. Floor 1.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from moelab.domain.allowed_cores import node_of_core
from moelab.kernels.native import library
from moelab.kernels.native_workers import NativeWorkers
from moelab.kernels.places import caller_core, places
from moelab.kernels.python_workers import PythonWorkers

AHEAD = 2  # tasks that a worker draws before it does them, where it is told of each
ON_THEIR_WAY_BYTES = 48 << 20  # reads of all workers together, while there are tasks to read ahead for


class Reads(Protocol):
    """Reads that were begun for tasks drawn ahead, each thread's its own."""

    def on_their_way(self) -> int:
        """Bytes that this thread has asked for and that have not come."""

    def begun(self) -> int:
        """The number of the last read that this thread began."""

    def wait(self, number: int) -> bool:
        """Until what this thread began up to this number has come; False where all of it had."""


class Pool:
    """``num_workers`` defaults to the physical cores that affinity mask and cgroup quota leave, and is cut to them.

    ``node_of_worker`` are the NUMA nodes, or ``virtual_nodes`` of equal shares of the cores (``virtual`` says so);
    ``memory_node_of_node`` [N] is what memory of a node is bound to, ``None`` for a virtual one.
    ``pinned`` says whether workers 1.. sit on their own core. One ``run`` at a time; a second thread that calls
    ``run`` waits. After a fork the child has no workers: ``run`` raises there.
    """

    def __init__(self, num_workers: int | None = None, pin: bool = True, virtual_nodes: int | None = None) -> None:
        chosen = places(num_workers, virtual_nodes)
        self.requested_workers = num_workers
        self.num_workers = len(chosen)
        self.node_of_worker = [place.node for place in chosen]
        self.num_nodes = max(self.node_of_worker) + 1
        self.virtual = virtual_nodes is not None
        self.memory_node_of_node: list[int | None] = [None] * self.num_nodes
        if not self.virtual:
            for place in chosen:
                self.memory_node_of_node[place.node] = place.memory_node
        self._process = os.getpid()
        self._closed = False
        self._busy = threading.Lock()
        self._owner: int | None = None
        cores = [place.core if pin else None for place in chosen]
        self._workers: NativeWorkers | PythonWorkers = (
            PythonWorkers(cores) if library()[0] is None else NativeWorkers(cores, self.node_of_worker)
        )

    @property
    def pinned(self) -> bool:
        return self.num_workers > 1 and self._workers.pinned

    @property
    def caller_place(self) -> tuple[int, int] | None:
        """(core, node of the operating system) that this thread, worker 0 of its runs, is on now; ``None``: not told.

        Pin the thread (``os.sched_setaffinity``) to a core of ``memory_node_of_node[0]`` where it is on another node.
        """
        core = caller_core()
        return None if core is None else (core, node_of_core(core))

    @property
    def closed(self) -> bool:
        return self._closed

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(handle, *arguments)`` of the native library, with the checks of ``run``.

        Raises ``RuntimeError`` as ``run`` does, and where the workers are Python threads.
        """
        workers = self._workers
        if not isinstance(workers, NativeWorkers):
            raise RuntimeError("pool: its workers are Python threads (no native library): choose isa 'numba'")
        self._check()
        # No statement between taking the lock, or the ownership, and the block that gives it back: Ctrl-C may come
        # at any call.
        with self._busy:
            try:
                self._take()
                return function(workers.handle, *arguments)
            finally:
                self._owner = None

    def run(self, function: Callable[[int, int], object]) -> None:
        """Call ``function(worker, num_workers)`` on every worker, here as worker 0, and wait for all.

        The caller's own exception, Ctrl-C among them, or the first of another worker is raised after all have
        finished. Raises ``RuntimeError`` when the pool is closed, was created by another process, or is called from
        inside a run.
        """
        self._check()
        with self._busy:
            try:
                self._take()
                self._workers.run(function)
            finally:
                self._owner = None

    def draw(
        self,
        num_tasks: int,
        task: Callable[[int], object],
        after: Callable[[int], object] | None = None,
        ahead: Callable[[int], object] | None = None,
        meanwhile: Callable[[], object] | None = None,
        reads: Reads | None = None,
        most: int = AHEAD,
    ) -> None:
        """``task(0)`` .. ``task(num_tasks - 1)``, which the workers draw in rising order, so that none waits long.

        ``after(number)`` is called by the caller's own worker alone, between its tasks, with the number of finished
        ones: for a progress bar. ``ahead(number)`` is called by the worker that drew the task, AHEAD other tasks
        before it does it, up to ``most`` while few bytes of ``reads`` are on their way. ``meanwhile`` is called by the
        caller's own worker before its first task. Raises as ``run`` does; after an exception no further task is begun.

        A disk may tell of several reads at once, and has nothing left to do then: so what is on its way counts, not
        what was drawn, and whoever waited for a task's reads first draws ahead again.
        """
        numbers = itertools.count()
        num_done = [0] * self.num_workers
        failed: list[int] = []

        def work(worker: int, num_workers: int) -> None:
            drawn: deque[tuple[int, int]] = deque()
            least, share = 0 if ahead is None else AHEAD, ON_THEIR_WAY_BYTES // num_workers
            try:
                if worker == 0 and meanwhile is not None:
                    meanwhile()
                while not failed:
                    while (
                        len(drawn) <= least
                        or (reads is not None and len(drawn) <= most and reads.on_their_way() < share)
                    ) and (number := next(numbers)) < num_tasks:
                        if ahead is not None:
                            ahead(number)
                        drawn.append((number, 0 if reads is None else reads.begun()))
                    if not drawn:
                        break
                    if reads is not None and reads.wait(drawn[0][1]):
                        continue
                    task(drawn.popleft()[0])
                    num_done[worker] += 1
                    if worker == 0 and after is not None:
                        after(sum(num_done))
            except BaseException:  # Ctrl-C may come between two tasks too
                failed.append(worker)
                raise

        self.run(work)
        if after is not None:
            after(num_tasks)

    def _check(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                f"pool belongs to process {self._process}; this is its fork {os.getpid()}: "
                "create a new Pool after forking"
            )
        if self._owner == threading.get_ident():
            raise RuntimeError("pool.run was called from inside a run of the same pool: use one level of run")

    def _take(self) -> None:
        if self._closed:
            raise RuntimeError("pool is closed: create a new Pool")
        self._owner = threading.get_ident()

    def close(self) -> None:
        """End the workers and wait for them. Twice is harmless; in a fork nothing is waited for."""
        if self._process != os.getpid():
            self._closed = True
            return
        with self._busy:
            if not self._closed:
                self._closed = True
                self._workers.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        nodes = f", {self.num_nodes} {'virtual ' if self.virtual else ''}nodes" if self.num_nodes > 1 else ""
        return f"Pool({self.num_workers} workers{nodes}, {'pinned' if self.pinned else 'not pinned'}, {state})"
