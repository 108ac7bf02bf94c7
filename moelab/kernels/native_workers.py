"""Workers of the native library: threads that spin for a moment after a run and then sleep.

``handle`` is what native calls take; ``run`` calls a Python function on every worker (each takes the GIL for it). Does
not know forks, owners or nodes (see ``pool``). Floor 1: the standard library.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable

from moelab.kernels.native import WORK, require_library

# Long enough for the gap between two layers of a decode step, short enough that an idle notebook costs nothing.
SPIN_NS = 200_000


class NativeWorkers:
    """Worker w sits on ``cores[w]`` (``None``: anywhere) and serves node ``nodes[w]``; worker 0 is the caller."""

    def __init__(self, cores: list[int | None], nodes: list[int]) -> None:
        self.num_workers = len(cores)
        self._library = require_library()
        core_array = (ctypes.c_int32 * len(cores))(*[-1 if core is None else core for core in cores])
        node_array = (ctypes.c_int32 * len(nodes))(*nodes)
        self.handle: int | None = self._library.moelab_pool_create(len(cores), core_array, node_array, SPIN_NS)
        if not self.handle:
            raise RuntimeError(f"pool: expected {len(cores)} threads; the system gave fewer: ask for fewer workers")
        # A pool that is dropped without close ends its threads too; in a forked child there are none to end.
        self._finalizer = weakref.finalize(self, _destroy, os.getpid(), self.handle)
        self.pinned = self._library.moelab_pool_pinned(self.handle) == len(cores) - 1

    def run(self, function: Callable[[int, int], object]) -> None:
        """The first exception of any worker is raised after all have finished.

        Ctrl-C that comes when Python enters the caller's callback leaves it by no way that it could be caught there:
        ctypes prints and drops it. The caller's share is then undone, which is how it is noticed, and it is raised.
        """
        errors: dict[int, BaseException] = {}
        done = [False] * self.num_workers

        def work(_context: int | None, worker: int, num_workers: int) -> None:
            try:
                function(worker, num_workers)
                done[worker] = True
            except BaseException as error:  # carried to the caller; no call here, after which Ctrl-C could come
                errors[worker] = error

        self._library.moelab_pool_run(self.handle, WORK(work), None)
        if errors:
            raise next(iter(errors.values()))
        if not all(done):
            raise KeyboardInterrupt

    def close(self) -> None:
        """End the workers and wait for them."""
        self._finalizer()
        self.handle = None


def _destroy(process: int, handle: int) -> None:
    if process == os.getpid():
        require_library().moelab_pool_destroy(handle)
