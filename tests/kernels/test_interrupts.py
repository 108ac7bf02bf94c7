"""Ctrl-C at random instants of runs: each one that the handler raised arrives, and no worker is at work when it does.

The handler counts what it raises. ctypes prints and drops what is raised inside a callback of the main thread, so that
one interrupt of a run that calls back would be counted and never come.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading

import numpy as np
import pytest

from moelab.kernels import ExpertLayout, Pool, RoutedExperts, routed
from moelab.kernels import pool as pool_module
from moelab.kernels.python_workers import PythonWorkers
from tests.kernels.random_experts import random_arena, random_step

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this platform"),
    pytest.mark.timeout(60, method="thread"),  # the other method takes the timer that is used here
]
LONGEST_S = 300e-6


@pytest.fixture
def interrupts(monkeypatch):
    """A function that interrupts ``step``, called over and over, ``num`` times; gives (raised, arrived, dropped)."""
    raised = [0]

    def handler(_number, _frame):
        raised[0] += 1
        raise KeyboardInterrupt

    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    before = signal.signal(signal.SIGALRM, handler)
    gc.disable()  # finalizers and callbacks of the collector drop exceptions too, which is not what is tested

    def interrupt(step, after, num: int, seed: int = 0) -> tuple[int, int, int]:
        draw, arrived = random.Random(seed), 0
        for _ in range(num):
            target = raised[0] + 1
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, LONGEST_S))
                while raised[0] < target:
                    step()
            except KeyboardInterrupt:
                arrived += 1
            after()
        return raised[0], arrived, len(dropped)

    yield interrupt
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.enable()


@pytest.mark.parametrize("workers", ["native", "python"])
def test_no_interrupt_of_a_run_is_lost_and_no_worker_left_behind(interrupts, workers, monkeypatch):
    if workers == "python":
        monkeypatch.setattr(pool_module, "library", lambda: (None, "asked for"))
    with Pool(2) as pool:
        assert isinstance(pool._workers, PythonWorkers) == (workers == "python")
        if pool.num_workers < 2:
            pytest.skip("one core only")
        begun, ended = [0, 0], [0, 0]

        def work(worker: int, num_workers: int) -> None:
            begun[worker] += 1
            sum(range(200))
            ended[worker] += 1

        def all_ended() -> None:
            assert begun[1] == ended[1], "a worker was at work when the interrupt arrived"

        num = 2000 if workers == "native" else 500
        assert interrupts(lambda: pool.run(work), all_ended, num) == (num, num, 0)
        pool.run(work)
        assert begun[1] == ended[1] > 0


def test_no_interrupt_of_a_layer_call_is_lost_and_none_is_half_done(interrupts, monkeypatch):
    monkeypatch.setattr(routed, "ALONE_BYTES", {"numba": 0, "native": 0})
    layout = ExpertLayout(160, 112, "int4_g32")
    arena = random_arena(layout, 6, seed=3)
    x, ids, gates = random_step(np.random.default_rng(4), 5, 3, 6, 160)
    with Pool(2) as pool:
        experts = RoutedExperts(layout, arena.addresses, pool=pool, owner=arena)
        if experts.isa.isa == "numba":
            pytest.skip("native kernels are not built")
        expected = experts.forward(x, ids, gates)
        calls = [experts.num_calls]

        def check() -> None:
            np.testing.assert_array_equal(experts.forward(x, ids, gates), expected)
            assert experts.num_calls > calls[0]
            calls[0] = experts.num_calls

        assert interrupts(lambda: experts.forward(x, ids, gates), check, 800) == (800, 800, 0)


def test_an_interrupt_waits_for_a_worker_that_is_slow():
    """Raised in the caller's share while the other one sleeps; a second one comes while the caller waits."""
    leave, finished = threading.Event(), []

    def work(worker: int, num_workers: int) -> None:
        if worker == 0:
            signal.raise_signal(signal.SIGINT)
        else:
            leave.wait(20)
            finished.append(worker)

    with Pool(2) as pool:
        if pool.num_workers < 2:
            pytest.skip("one core only")
        helpers = [
            threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)),
            threading.Timer(0.2, leave.set),
        ]
        for helper in helpers:
            helper.start()
        with pytest.raises(KeyboardInterrupt):
            pool.run(work)
        assert finished == [1]
        for helper in helpers:
            helper.join()
        pool.run(lambda worker, n: None)
