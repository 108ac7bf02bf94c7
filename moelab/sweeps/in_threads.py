"""Cells in threads of this process: the replay loop releases the GIL, so threads share one trace.  Floor 4.

Ctrl-C ends a sweep between rows. Python raises ``KeyboardInterrupt`` anywhere in the main thread, also between the
taking of a lock and the ``with`` that would give it back; a worker then waits for ever. So the signal is turned into
one more answer, and the rows come through a queue without locks of Python's own.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

from moelab.domain.trace import Trace
from moelab.policies import POLICIES
from moelab.policies.requests import Requests
from moelab.sweeps.cell import Cell
from moelab.sweeps.rows import Row


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute(
    trace: Trace, cells: Sequence[Cell], digest: str, num_threads: int | None, keep: Callable[[Row], None]
) -> None:
    """Call ``keep`` with each row as it is done, in the caller's thread.

    After an error or Ctrl-C no further cell begins; those under way are finished and kept, then it is raised. A second
    Ctrl-C does not wait for them.
    """
    requests = requests_for(trace, cells)
    waiting = deque(cells)
    answers: SimpleQueue[Row | BaseException | None] = SimpleQueue()  # None: a worker has no more cells

    def work() -> None:
        while True:
            try:
                cell = waiting.popleft()
            except IndexError:
                answers.put(None)
                return
            try:
                answers.put(cell.row(trace, requests, digest))
            except BaseException as error:
                answers.put(error)

    num_workers = min(num_threads or num_cores(), len(cells))
    errors: list[BaseException] = []
    with _interrupt_as_answer(answers):
        for index in range(num_workers):
            threading.Thread(target=work, name=f"sweep-{index}", daemon=True).start()
        while num_workers:
            answer = answers.get()
            if answer is None:
                num_workers -= 1
            elif isinstance(answer, BaseException):
                errors.append(answer)
            else:
                try:
                    keep(answer)
                except Exception as error:
                    errors.append(error)
            if errors:
                waiting.clear()
    if not answers.empty():  # interrupted after the last row
        errors.append(KeyboardInterrupt())
    if errors:
        raise errors[0]


@contextmanager
def _interrupt_as_answer(answers: SimpleQueue[Row | BaseException | None]) -> Iterator[None]:
    """The first SIGINT becomes a ``KeyboardInterrupt`` among the answers, a second one is raised as ever.

    Only where Python's own handler stands and in the main thread: other handlers are somebody's choice.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def answer(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        answers.put(KeyboardInterrupt())

    signal.signal(signal.SIGINT, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def requests_for(trace: Trace, cells: Sequence[Cell]) -> Requests:
    """The trace's requests, with next uses where an oracle is among the cells: found once, not in each thread."""
    requests = Requests.of_trace(trace)
    if any(POLICIES[cell.policy.name].needs_next_use for cell in cells):
        requests.next_use  # noqa: B018  cached there
    return requests
