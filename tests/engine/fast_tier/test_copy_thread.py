"""The copy thread: order, tickets, what was superseded, and errors that reach the caller."""

import threading

import numpy as np
import pytest

from moelab.engine.fast_tier.copy_thread import CopyError, CopyThread
from moelab.engine.fast_tier.slot_table import SlotTable


class Gate:
    """Copies that begin only when they are let through; `slots` is what was copied."""

    def __init__(self):
        self.may, self.began = threading.Semaphore(0), threading.Semaphore(0)
        self.slots = []

    def __call__(self, job):
        self.began.release()
        assert self.may.acquire(timeout=20)
        self.slots.append((job.slot, job.expert))
        return 10


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def thread(gate):
    thread = CopyThread(3, gate, lambda: None, keep_log=True)
    yield thread
    for _ in range(10):
        gate.may.release()
    thread.close()


def test_a_slot_is_read_only_after_its_own_copy(thread, gate):
    thread.ask(0, 0, 7, clock=1, kind=0)
    assert gate.began.acquire(timeout=20)  # half copied
    assert not thread.has_arrived(0)
    gate.may.release()
    thread.wait(0)
    assert thread.has_arrived(0)
    # 7 is evicted and comes back into the same slot before the copy of 8 has begun: its old bytes must not be read.
    thread.forget(0)
    thread.ask(0, 0, 8, clock=2, kind=0)
    assert gate.began.acquire(timeout=20)
    thread.forget(0)
    thread.ask(0, 0, 7, clock=3, kind=0)
    assert not thread.has_arrived(0)
    gate.may.release()  # 8 is there, too late
    assert gate.began.acquire(timeout=20)
    assert not thread.has_arrived(0)
    gate.may.release()
    thread.drain()
    assert thread.has_arrived(0)
    assert gate.slots == [(0, 7), (0, 8), (0, 7)]


def test_an_evicted_expert_is_not_copied_any_more(thread, gate):
    thread.ask(0, 0, 1, clock=0, kind=0)
    assert gate.began.acquire(timeout=20)
    thread.ask(1, 0, 2, clock=1, kind=0)
    thread.ask(2, 0, 3, clock=1, kind=2)
    thread.forget(1)
    for _ in range(2):
        gate.may.release()
    thread.drain()
    assert gate.slots == [(0, 1), (2, 3)]
    assert (thread.num_copied, thread.num_superseded, thread.link_bytes) == (2, 1, 20)
    assert thread.log == [(0, 0, 0, 1, 1), (1, 0, 0, 2, 0), (1, 2, 0, 3, 1)]


@pytest.mark.parametrize("call", ["wait", "drain", "ask", "check"])
def test_an_error_in_the_thread_reaches_the_caller(call):
    def fail(job):
        raise OSError("the link is down")

    thread = CopyThread(1, fail, lambda: None, keep_log=False)
    thread.ask(0, 4, 2, clock=0, kind=0)
    thread._thread.join(timeout=20)
    arguments = {"wait": (0,), "ask": (0, 4, 3, 1, 0)}.get(call, ())
    with pytest.raises(CopyError, match="layer 4 expert 2: OSError: the link is down") as caught:
        getattr(thread, call)(*arguments)
    assert isinstance(caught.value.__cause__, OSError)
    assert not thread.has_arrived(0)
    thread.close()


def test_a_thread_that_cannot_start_says_so():
    def fail():
        raise RuntimeError("no context")

    thread = CopyThread(1, lambda job: 0, fail, keep_log=False)
    with pytest.raises(CopyError, match="could not start: RuntimeError: no context"):
        thread.drain() or thread._thread.join(timeout=20) or thread.check()
    thread.close()


def test_slot_table():
    table = SlotTable(2, 5, [2])
    assert [table.take(0, 3), table.take(1, 3)] == [0, 1]
    with pytest.raises(RuntimeError, match="expected a free slot"):
        table.take(0, 1)
    assert table.release(0, 3) == 0
    with pytest.raises(RuntimeError, match="cannot be evicted"):
        table.release(0, 3)
    assert table.take(1, 4) == 0
    assert np.argwhere(table.resident).tolist() == [[1, 3], [1, 4]]
    assert table.expert_of_slot.tolist() == [[1, 4], [1, 3]]
