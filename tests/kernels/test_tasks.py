"""Tasks: each is done once, by all workers or alone, and the bytes that are done only grow."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest

from moelab.kernels import Pool, native
from moelab.kernels.linear import pack_matrices
from moelab.kernels.pool import AHEAD
from moelab.kernels.tasks import GROUP_BYTES, Tasks, group


@pytest.mark.parametrize("alone", [True, False])
def test_each_is_done_once(alone):
    done, told, tasks = [], [], Tasks()
    for number in range(57):
        tasks.add(number * number, lambda number=number: done.append(number))
    with Pool() as pool:
        tasks.run(None if alone else pool, told.append)
        assert sorted(done) == list(range(57))
        assert alone or (told == sorted(told) and told[-1] == 1)
        assert len(tasks) == 0
        tasks.run(pool)  # nothing is left
    assert len(done) == 57


def test_a_failure_is_raised_and_ends_the_rest():
    def fail():
        raise KeyError("task")

    done, tasks = [], Tasks()
    tasks.add(1, fail)
    tasks.extend([(1, lambda: (time.sleep(1e-4), done.append(1)), None)] * 10_000)
    with Pool() as pool, pytest.raises(KeyError):
        tasks.run(pool)
    assert len(done) < 10_000


@pytest.mark.skipif(native.library()[0] is None, reason="native kernels are not built")
def test_matrices_packed_later_are_those_packed_at_once():
    rng = np.random.default_rng(4)
    tasks, pairs = Tasks(), []
    for shape in ((48, 64), (3, 16, 128), (2000, 1100)):
        weights = rng.standard_normal(shape).astype(np.float32)
        num_bytes = (shape[0] if len(shape) == 3 else 1) * -(-shape[-2] // 16) * -(-shape[-1] // 64) * 1088
        now, later = (np.zeros(num_bytes, np.uint8) for _ in range(2))
        pack_matrices(now, weights, "int8_g32", None)
        pack_matrices(later, weights, "int8_g32", None, tasks)
        assert not later.any()
        pairs.append((now, later))
    with Pool() as pool:
        tasks.run(pool)
    for now, later in pairs:
        assert now.any()
        np.testing.assert_array_equal(later, now)


def test_a_worker_is_told_of_its_tasks_before_it_does_them():
    """Each once, by the worker that does it, and at most AHEAD of them wait."""
    told, tasks, waiting, most = {}, Tasks(), [], []

    def tell(number):
        told[number] = threading.get_ident()
        waiting.append(number)

    def do(number):
        assert told.pop(number) == threading.get_ident()
        waiting.remove(number)

    for number in range(300):
        tasks.add(GROUP_BYTES, partial(do, number), partial(tell, number))
    with Pool() as pool:
        tasks.run(pool, lambda done: most.append(len(waiting)))
        assert 0 < max(most) <= (AHEAD + 1) * pool.num_workers
    assert told == {}
