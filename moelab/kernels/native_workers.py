"""Workers of the native library: threads that spin for a moment after a run and then sleep.

``handle`` is what native calls take; ``run`` calls a Python function on every worker (each takes the GIL for it).

Ctrl-C: a native call ends before Python looks for it, and no Python of the caller runs inside one (ctypes would print
and drop what is raised there): ``run`` starts the others, does the caller's share as plain Python and waits. CPython
looks for Ctrl-C after calls, at the start of Python functions and when it jumps back, which from the start on is only
inside the block whose end waits. So none is lost, and no worker is at work when it is raised. Does not know forks,
owners or nodes (see ``pool``). Floor 1: the standard library.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable

from moelab.kernels.native import MAX_NODES, WORK, require_library

# Long enough for the gap between two layers of a decode step, short enough that an idle notebook costs nothing.
SPIN_NS = 200_000


class NativeWorkers:
    """Worker w sits on ``cores[w]`` (``None``: anywhere) and serves node ``nodes[w]``; worker 0 is the caller.

    Raises ``ValueError`` for more nodes than the library knows, ``RuntimeError`` where there are too few threads.
    """

    def __init__(self, cores: list[int | None], nodes: list[int]) -> None:
        if max(nodes) >= MAX_NODES:
            raise ValueError(
                f"nodes: expected at most {MAX_NODES}; got {max(nodes) + 1}: ask for {MAX_NODES} virtual nodes or "
                "workers at most, or allow the process the cores of fewer nodes (taskset)"
            )
        self.num_workers = len(cores)
        library = require_library()
        self._start, self._wait = library.moelab_pool_start, library.moelab_pool_wait
        core_array = (ctypes.c_int32 * len(cores))(*[-1 if core is None else core for core in cores])
        node_array = (ctypes.c_int32 * len(nodes))(*nodes)
        self.handle: int | None = library.moelab_pool_create(len(cores), core_array, node_array, SPIN_NS)
        if not self.handle:
            raise RuntimeError(f"pool: expected {len(cores)} threads; the system gave fewer: ask for fewer workers")
        # A pool that is dropped without close ends its threads too; in a forked child there are none to end. At exit
        # the process ends them: a daemon thread may be inside a run, and its pool must not go under it.
        self._finalizer = weakref.finalize(self, _destroy, os.getpid(), self.handle)
        self._finalizer.atexit = False
        self.pinned = library.moelab_pool_pinned(self.handle) == len(cores) - 1

    def run(self, function: Callable[[int, int], object]) -> None:
        """The caller's own exception, or the first of another worker, is raised after all have finished."""
        errors: list[BaseException] = []

        def work(_context: int | None, worker: int, num_workers: int) -> None:
            try:
                function(worker, num_workers)
            except BaseException as error:  # carried to the caller
                errors.append(error)

        # Looked up before: from `try` to the start, and from the caller's share to the wait, there is one call each.
        start, wait, handle, share, num_workers = self._start, self._wait, self.handle, WORK(work), self.num_workers
        try:
            start(handle, share, None)
            function(0, num_workers)
        finally:
            wait(handle)
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the workers and wait for them."""
        self._finalizer()
        self.handle = None


def _destroy(process: int, handle: int) -> None:
    if process == os.getpid():
        require_library().moelab_pool_destroy(handle)
