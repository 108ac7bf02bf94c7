"""Tasks: each is done once, by all workers or alone, and the bytes that are done only grow."""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from moelab.kernels import Pool, native
from moelab.kernels.linear import pack_matrices
from moelab.kernels.pool import AHEAD, ON_THEIR_WAY_BYTES
from moelab.kernels.tasks import GROUP_BYTES, MOST_AHEAD, Tasks, group


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


def test_small_neighbours_are_drawn_together_and_none_is_lost():
    rng = np.random.default_rng(8)
    for _ in range(50):
        sizes = [int(size) for size in rng.integers(0, 2 * GROUP_BYTES, 40) * (rng.random(40) < 0.3) + 1000]
        groups = group(sizes)
        assert [number for first, stop in groups for number in range(first, stop)] == list(range(40))
        for (first, stop), (_, after) in pairwise(groups):
            assert stop == first + 1 or sum(sizes[first:stop]) <= GROUP_BYTES
            assert sum(sizes[first : stop + 1]) > GROUP_BYTES, "there was room for one more"
            assert after > stop
    assert group([]) == []


def test_split_and_mixed_tasks_are_done_once_each_in_their_order():
    done, tasks, others = [], Tasks(), Tasks()
    for number in range(100):
        tasks.add(GROUP_BYTES, partial(done.append, number))
    for number in range(1000, 1020):
        others.add(2 * GROUP_BYTES, partial(done.append, number))
    first, rest = tasks.split(0.25)
    assert (len(first), len(rest), len(tasks)) == (24, 76, 0)
    assert list(map(len, Tasks().split(0.5))) == [0, 0]
    first.run(None, meanwhile=partial(done.append, -1))
    assert done == [-1, *range(24)]
    done.clear()
    rest.mix(others)
    assert (len(rest), len(others)) == (96, 0)
    rest.run(None)
    assert [number for number in done if number < 1000] == list(range(24, 100))
    assert [number for number in done if number >= 1000] == list(range(1000, 1020))
    places = [place for place, number in enumerate(done) if number >= 1000]
    assert max(np.diff(places)) <= 6, "spread evenly"


def test_the_caller_does_something_first_while_others_work():
    """With two workers the others need not wait for it; what it raises ends the run."""
    with Pool() as pool:
        here, began = threading.get_ident(), threading.Event()
        tasks, seen = Tasks(), []

        def meanwhile():
            seen.append(threading.get_ident())
            assert pool.num_workers == 1 or began.wait(60)

        for _ in range(20):
            tasks.add(GROUP_BYTES, began.set)
        tasks.run(pool, meanwhile=meanwhile)
        assert seen == [here]
        tasks.add(1, began.set)
        with pytest.raises(ZeroDivisionError):
            tasks.run(pool, meanwhile=lambda: 1 // 0)


class SlowDisk:
    """Reads of all threads that come when somebody waits: all that are on their way, as a disk may tell of them."""

    def __init__(self, num_bytes):
        self.num_bytes, self.local, self.most = num_bytes, threading.local(), 0

    def own(self):
        return self.local.__dict__.setdefault("own", {"begun": 0, "came": 0})

    def begin(self):
        own = self.own()
        own["begun"] += 1
        self.most = max(self.most, self.on_their_way())

    def on_their_way(self):
        own = self.own()
        return (own["begun"] - own["came"]) * self.num_bytes

    def begun(self):
        return self.own()["begun"]

    def wait(self, number):
        own = self.own()
        waited = own["came"] < number
        if waited:
            own["came"] = own["begun"]
        return waited


@pytest.mark.parametrize(("num_bytes", "most"), [(1 << 20, MOST_AHEAD), (1 << 20, 96), (2 << 20, 40), (64 << 20, 40)])
def test_whoever_waited_asks_again_before_the_task(num_bytes, most):
    """All reads come at once; no task is done while nothing is on its way, but at the end."""
    disk, order, count = SlowDisk(num_bytes), [], 8 * most
    idle = []

    def do(number):
        order.append(number)
        if disk.on_their_way() == 0:
            idle.append(number)

    with Pool(1) as pool:
        pool.draw(count, do, ahead=lambda number: disk.begin(), reads=disk, most=most)
    assert order == list(range(count))
    assert all(number >= count - most - 1 for number in idle)
    limit = max(ON_THEIR_WAY_BYTES + num_bytes, (AHEAD + 1) * num_bytes)
    assert min((AHEAD + 1) * num_bytes, ON_THEIR_WAY_BYTES) <= disk.most <= limit


def test_reads_of_many_workers_share_what_may_be_on_its_way():
    disk, done = SlowDisk(1 << 20), []
    with Pool() as pool:
        pool.draw(500, done.append, ahead=lambda number: disk.begin(), reads=disk, most=100)
        limit = ON_THEIR_WAY_BYTES // pool.num_workers + (1 << 20)
    assert sorted(done) == list(range(500))
    assert disk.most <= max(limit, (AHEAD + 1) << 20)
