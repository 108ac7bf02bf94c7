"""A pool across a fork: the child is refused and never hangs, a pool of its own works there, the parent's goes on.

Children end by ``os._exit`` with 0 or the number of what went wrong; one belongs to a script and ends as scripts do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from moelab.kernels import ExpertLayout, Pool, RoutedExperts, routed
from tests.kernels.random_experts import random_arena, random_step

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Python's own warning about threads and fork
]
TIMEOUT_S = 20


def in_child(work: Callable[[], int]) -> int:
    """Exit code of a forked child that runs ``work``; a child that hangs is killed and fails the test."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    deadline = time.monotonic() + TIMEOUT_S
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(done[1])


def refused(use: Callable[[], object]) -> bool:
    try:
        use()
    except RuntimeError as error:
        return "create a new Pool after forking" in str(error)
    return False


def test_child_is_refused_and_parent_goes_on():
    with Pool(2) as pool:

        def child() -> int:
            if not refused(lambda: pool.run(lambda worker, n: None)):
                return 1
            if not refused(lambda: pool.draw(4, lambda number: None)):
                return 2
            pool.close()
            return 0

        assert in_child(child) == 0
        seen: list[int] = []
        pool.run(lambda worker, n: seen.append(worker))
        assert sorted(seen) == list(range(pool.num_workers))


def test_child_computes_the_same_bits_with_a_pool_of_its_own(monkeypatch):
    """Weights are shared until written; what the child closes is its own."""
    monkeypatch.setattr(routed, "ALONE_BYTES", {"numba": 0, "native": 0})
    layout = ExpertLayout(160, 112, "int4_g32")
    arena = random_arena(layout, 6, seed=3)
    x, ids, gates = random_step(np.random.default_rng(4), 5, 3, 6, 160)
    with Pool(2) as pool:
        experts = RoutedExperts(layout, arena.addresses, pool=pool, owner=arena)
        expected = experts.forward(x, ids, gates)

        def child() -> int:
            if pool.num_workers > 1 and not refused(lambda: experts.forward(x, ids, gates)):
                return 1
            with Pool(2) as own:
                again = RoutedExperts(layout, arena.addresses, pool=own, owner=arena)
                if not np.array_equal(again.forward(x, ids, gates), expected):
                    return 2
            arena[0][:] = 0
            arena.close()
            return 0

        for _ in range(3):
            assert in_child(child) == 0
        np.testing.assert_array_equal(experts.forward(x, ids, gates), expected)


def test_fork_in_the_middle_of_a_run_of_another_thread():
    """The child inherits a pool that is taken for ever: it must not wait for it."""
    inside, leave = threading.Event(), threading.Event()

    def work(worker: int, num_workers: int) -> None:
        if worker == 0:
            inside.set()
            leave.wait(TIMEOUT_S)

    with Pool(2) as pool:
        other = threading.Thread(target=pool.run, args=(work,))
        other.start()
        assert inside.wait(TIMEOUT_S)

        def child() -> int:
            if not refused(lambda: pool.run(lambda worker, n: None)):
                return 1
            pool.close()
            with Pool(2) as own:
                seen: list[int] = []
                own.run(lambda worker, n: seen.append(worker))
                return 0 if sorted(seen) == list(range(own.num_workers)) else 2

        try:
            assert in_child(child) == 0
        finally:
            leave.set()
            other.join(TIMEOUT_S)
        assert not other.is_alive()
        pool.run(lambda worker, n: None)


def test_child_that_drops_the_pool_or_ends_as_a_script_does_hangs_nowhere():
    """Finalizers run in the child: of the dropped pool at once, of the kept one when Python ends."""
    script = """
        import gc, os, sys
        from moelab.kernels import Pool
        kept, dropped = Pool(2), Pool(2)
        for pool in (kept, dropped):
            pool.run(lambda worker, n: None)
        del pool
        child = os.fork()
        if child == 0:
            del dropped
            gc.collect()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        for pool in (kept, dropped):
            pool.run(lambda worker, n: None)
        print("parent ends")
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=3 * TIMEOUT_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "parent ends\n", "")
