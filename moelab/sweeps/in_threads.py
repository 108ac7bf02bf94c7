"""Cells in threads of this process: the replay loop releases the GIL, so threads share one trace.  Floor 4."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

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

    After an error or Ctrl-C no further cell begins; those under way are finished and kept, then it is raised.
    """
    requests = requests_for(trace, cells)
    with ThreadPoolExecutor(num_threads or num_cores(), thread_name_prefix="sweep") as pool:
        waiting = {pool.submit(cell.row, trace, requests, digest) for cell in cells}
        try:
            for future in as_completed(set(waiting)):
                keep(future.result())
                waiting.remove(future)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            for future in waiting:
                if not future.cancelled() and future.exception() is None:
                    keep(future.result())
            raise


def requests_for(trace: Trace, cells: Sequence[Cell]) -> Requests:
    """The trace's requests, with next uses where an oracle is among the cells: found once, not in each thread."""
    requests = Requests.of_trace(trace)
    if any(POLICIES[cell.policy.name].needs_next_use for cell in cells):
        requests.next_use  # noqa: B018  cached there
    return requests
