"""Warm memory: free when a turn begins, and handed out by the host of a virtual machine before.

A virtual machine whose balloon reports free pages loses them to its host again, some 0.6 GB every two seconds. Whoever
writes there next waits for the host, page by page, and the thread of the host that serves the disk is busy with the
report meanwhile: a load of 1.4 s took 2.1 where a report came in between (docs/log.md, "loading, resubmitted"). So what
is touched is held, not free, until a report has just ended, and free from then on. Where nothing reports, nothing is
waited for. Nor are reserved huge pages reported, free or not: where enough of them are left, only their first touch
counts, and rounds are quicker and alike (`sysctl vm.nr_hugepages`). It does not know what is measured. Floor 6.
"""

from __future__ import annotations

import mmap
import time
from pathlib import Path

from moelab.kernels.pages import is_reserved, map_pages

INTERRUPTS = Path("/proc/interrupts")
PERIOD_S = 2.5  # a report begins within that, if pages are left to report
QUIET_S = 0.04  # without a further interrupt: the report has ended


def touch_memory(num_bytes: int) -> None:
    """Write to memory and free it at a moment after which it stays with this machine for a while."""
    pages = map_pages(num_bytes)
    pages.memory[:: mmap.PAGESIZE] = 1
    if not is_reserved(pages.pages):
        after_report()


def after_report() -> None:
    """Wait until a report of free pages has just ended, PERIOD_S at most; not at all where there is none."""
    count = reports()
    if count is None:
        return
    begun = time.perf_counter()
    changed = None
    while (now := time.perf_counter()) - begun < PERIOD_S and (changed is None or now - changed < QUIET_S):
        time.sleep(0.005)
        if (found := reports()) != count:
            count, changed = found, time.perf_counter()


def reports(interrupts: Path = INTERRUPTS) -> int | None:
    """Interrupts of the balloon's queue of reports until now; None where there is no such queue."""
    if not interrupts.is_file():
        return None
    rows = [line.split() for line in interrupts.read_text().splitlines() if line.rstrip().endswith("-reporting_vq")]
    return sum(int(word) for row in rows for word in row[1:] if word.isdigit()) if rows else None
