"""Cells on a Dask cluster: the trace goes out once, rows come back, this process keeps them.  Floor 4.

Workers need moelab, but neither the trace's folder nor the folder of the rows. Each worker builds the requests once.
Extra ``sweep`` (``distributed``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

from moelab.domain.trace import Trace
from moelab.policies import POLICIES
from moelab.policies.requests import Requests
from moelab.sweeps.cell import Cell, code_version
from moelab.sweeps.rows import Row

ANSWER_S = 30
"""How long the scheduler may take to answer, seconds."""

_requests_of_digest: dict[str, Requests] = {}  # on a worker: of the sweep that it works for
_lock = Lock()


def compute(trace: Trace, cells: Sequence[Cell], digest: str, scheduler: str, keep: Callable[[Row], None]) -> None:
    """Call ``keep`` with each row from the workers of the scheduler at ``scheduler`` (``tcp://host:port``).

    After an error or Ctrl-C what is not done is cancelled. Raises ``ImportError`` without ``distributed``, ``OSError``
    where nobody answers, ``ValueError`` without workers or where one runs other code.
    """
    from distributed import Client, as_completed

    with Client(scheduler, timeout=ANSWER_S, set_as_default=False) as client:
        version_of_worker = client.run(code_version)
        if not version_of_worker:
            raise ValueError(f"the scheduler at {scheduler} has no workers: start some with `dask worker {scheduler}`")
        for worker, version in version_of_worker.items():
            if version != code_version():
                raise ValueError(
                    f"worker {worker} runs moelab {version}, expected {code_version()} as here: install the same "
                    "moelab on every worker and start them again"
                )
        shared = client.scatter(trace, broadcast=True, hash=False)
        futures = client.map(_row, cells, trace=shared, digest=digest, pure=False)
        try:
            for future in as_completed(futures, loop=client.loop):
                keep(future.result())
        finally:
            client.cancel(futures)


def _row(cell: Cell, trace: Trace, digest: str) -> Row:
    """On a worker; its threads share the requests."""
    with _lock:
        if digest not in _requests_of_digest:
            _requests_of_digest.clear()
            _requests_of_digest[digest] = Requests.of_trace(trace)
        requests = _requests_of_digest[digest]
        if POLICIES[cell.policy.name].needs_next_use:
            requests.next_use  # noqa: B018  cached there
    return cell.row(trace, requests, digest)
