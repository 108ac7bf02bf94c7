"""Pool: every worker runs once, idle CPU, exceptions, close, Ctrl-C. Arena: own pages, alignment, close."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from moelab.kernels import ExpertArena, ExpertLayout, Pool
from moelab.kernels.native import MAX_NODES, library
from moelab.kernels.native_workers import NativeWorkers
from moelab.kernels.python_workers import PythonWorkers


def test_every_worker_runs_once_per_run():
    with Pool() as pool:
        for _ in range(200):
            seen: list[tuple[int, int]] = []
            pool.run(lambda worker, n, seen=seen: seen.append((worker, n)))
            assert sorted(seen) == [(w, pool.num_workers) for w in range(pool.num_workers)]


def test_draw_does_every_task_once_and_tells_only_the_caller():
    with Pool() as pool:
        done: list[int] = []
        told: list[tuple[int, int]] = []
        pool.draw(50, done.append, lambda number: told.append((number, threading.get_ident())))
        assert sorted(done) == list(range(50))
        assert {thread for _, thread in told} == {threading.get_ident()}
        assert [number for number, _ in told] == sorted(number for number, _ in told)
        assert told[-1][0] == 50
        pool.draw(0, done.append)
        assert len(done) == 50


def test_draw_begins_nothing_after_an_exception():
    begun: list[int] = []

    def task(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ValueError("third")
        time.sleep(0.01)

    with Pool() as pool:
        with pytest.raises(ValueError, match="third"):
            pool.draw(100_000, task)
        assert max(begun) < 3 + 2 * pool.num_workers
        pool.run(lambda worker, n: None)


def test_caller_is_worker_0_and_is_not_pinned():
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    threads: dict[int, int] = {}
    with Pool() as pool:
        pool.run(lambda worker, n: threads.__setitem__(worker, threading.get_ident()))
    assert threads[0] == threading.get_ident()
    assert before is None or os.sched_getaffinity(0) == before


def test_idle_workers_take_no_cpu():
    """CPU time of the process, not wall time: workers that went on spinning would burn all of it. Seen: 0.02%."""
    with Pool() as pool:
        for _ in range(3):
            pool.run(lambda worker, n: None)
            time.sleep(0.05)
            before = time.process_time()
            time.sleep(0.3)
            assert time.process_time() - before < 0.01 * 0.3
        seen: list[int] = []
        pool.run(lambda worker, n: seen.append(worker))  # and wake up again
        assert sorted(seen) == list(range(pool.num_workers))


def test_the_spin_after_a_run_is_short():
    """Runs 5 ms apart: a worker that spins from one to the next takes 5 ms of CPU for each. Seen: 0.4, its spin 0.2."""
    with Pool() as pool:
        before = time.process_time()
        for _ in range(50):
            pool.run(lambda worker, n: None)
            time.sleep(0.005)
        assert time.process_time() - before < 50 * 0.0015 * pool.num_workers


def test_two_threads_take_turns():
    """A second thread that runs on the same pool waits; each run is whole."""
    with Pool(2) as pool:
        counts = [0, 0]

        def use(index: int) -> None:
            for _ in range(100):
                seen: list[int] = []
                pool.run(lambda worker, n, seen=seen: seen.append(worker))
                counts[index] += len(seen) == pool.num_workers

        threads = [threading.Thread(target=use, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert counts == [100, 100]


@pytest.mark.parametrize("failing", [0, 1])
def test_exception_of_a_worker_reaches_the_caller(failing):
    def work(worker, num_workers):
        if worker == min(failing, num_workers - 1):
            raise KeyError("from the worker")

    with Pool(2) as pool:
        for _ in range(3):
            with pytest.raises(KeyError, match="from the worker"):
                pool.run(work)
        pool.run(lambda worker, n: None)


def test_close_twice_and_use_after_close():
    pool = Pool(2)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed: create a new Pool"):
        pool.run(lambda worker, n: None)
    with pytest.raises(ValueError, match="expected 1 or more"):
        Pool(0)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity masks on this platform")
@pytest.mark.parametrize("kind", ["native", "python"])
def test_pinned_is_said_of_all_workers(kind):
    """Whichever of them has no core that the system knows, and in whichever order they begin."""
    if kind == "native" and library()[0] is None:
        pytest.skip("native kernels are not built")

    def pinned(cores: list[int | None]) -> bool:
        workers = NativeWorkers(cores, [0] * len(cores)) if kind == "native" else PythonWorkers(cores)
        workers.close()
        return workers.pinned

    core, unknown = min(os.sched_getaffinity(0)), 100_000
    assert pinned([None, core, core])
    for without in (unknown, None):
        assert not pinned([None, without, core])
        assert not pinned([None, core, without])
        assert not pinned([None, without])


@pytest.mark.skipif(library()[0] is None, reason="native kernels are not built")
def test_more_nodes_than_the_library_knows_are_refused():
    """By their number, not as threads that the system did not give."""
    workers = NativeWorkers([None, None], [0, MAX_NODES - 1])
    workers.close()
    with pytest.raises(ValueError, match="nodes: expected at most 16; got 17: ask for 16 virtual nodes or workers"):
        NativeWorkers([None, None], [0, MAX_NODES])


def test_nested_run_is_refused():
    with Pool(2) as pool, pytest.raises(RuntimeError, match="inside a run"):
        pool.run(lambda worker, n: pool.run(lambda w, m: None) if worker == 0 else None)


def test_interrupt_waits_for_the_workers():
    finished = []

    def work(worker, num_workers):
        if worker == 0:
            raise KeyboardInterrupt
        time.sleep(0.05)
        finished.append(worker)

    with Pool(2) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.run(work)
        assert len(finished) == pool.num_workers - 1
        pool.run(lambda worker, n: None)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_every_touched_expert_has_its_own_pages():
    layout = ExpertLayout(1024, 1024, "int4_g32")
    with ExpertArena(layout, 32) as arena:
        before = resident_bytes()
        for expert in range(16):
            arena[expert][:] = expert + 1
        touched = resident_bytes() - before
        expected = 16 * layout.expert_bytes
        assert expected <= touched + (1 << 20)
        assert touched <= expected + 2 * (2 << 20) + (1 << 20)
        assert [int(arena[e][0]) for e in range(16)] == list(range(1, 17))
        assert len({int(a) // 4096 for a in arena.addresses}) == 32
    del arena


def test_addresses_are_aligned_and_views_write_there():
    for layout in (ExpertLayout(33, 17, "int4_g32"), ExpertLayout(300, 200, "bf16")):
        with ExpertArena(layout, 5) as arena:
            assert (arena.addresses % 64 == 0).all()
            assert (np.diff(arena.addresses) >= layout.expert_bytes).all()
            for expert in range(5):
                assert arena[expert].ctypes.data == arena.addresses[expert]
                arena[expert][:] = expert
            assert [int(arena[e].max()) for e in range(5)] == list(range(5))
            with pytest.raises(IndexError, match=r"expected 0..4; got 5"):
                arena[5]


def test_close_keeps_views_alive_and_twice_is_harmless():
    arena = ExpertArena(ExpertLayout(64, 64, "bf16"), 2)
    view = arena[1]
    view[:] = 7
    arena.close()
    arena.close()
    assert (view == 7).all()
    with pytest.raises(ValueError, match="closed"):
        arena[0]
