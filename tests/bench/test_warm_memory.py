"""Memory of a turn of the bench of loading: reports of the balloon are found by their interrupts."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from moelab.bench import warm_memory

INTERRUPTS = """           CPU0       CPU1
 31:          0       7513 PCI-MSIX-0000:00:01.0   3-edge      virtio0-stats
 32:      17555         12 PCI-MSIX-0000:00:01.0   4-edge      virtio0-reporting_vq
 36:          0    5355188 PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0
"""


def test_interrupts_of_the_queue_of_reports_are_counted(tmp_path):
    file = tmp_path / "interrupts"
    file.write_text(INTERRUPTS)
    assert warm_memory.reports(file) == 17567
    file.write_text(INTERRUPTS.replace("reporting_vq", "deflate"))
    assert warm_memory.reports(file) is None
    assert warm_memory.reports(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("counts", "least", "most"), [([None], 0, 0.05), ([5], 0.2, 0.4), ([5, 5, 6, 7, 7], 0.05, 0.19)]
)
def test_waits_for_the_end_of_a_report(monkeypatch, counts, least, most):
    """Not at all without reports, PERIOD_S where none comes, else until the interrupts rest for QUIET_S."""
    left = list(counts)
    monkeypatch.setattr(warm_memory, "reports", lambda: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(warm_memory, "PERIOD_S", 0.2)
    waited = []
    for _ in range(5):  # another process may have the core for a while
        left[:] = counts
        begun = time.perf_counter()
        warm_memory.after_report()
        waited.append(time.perf_counter() - begun)
    assert least <= min(waited) < most


def test_touched_memory_is_held_until_then(monkeypatch):
    held = []

    def after_report():
        (memory,) = [each for each in made if each is not None]
        held.append(int(memory[::4096].sum()))

    made = []
    inner = warm_memory.map_pages

    def map_pages(num_bytes):
        pages = inner(num_bytes)
        made.append(pages.memory)
        return pages

    monkeypatch.setattr(warm_memory, "map_pages", map_pages)
    monkeypatch.setattr(warm_memory, "after_report", after_report)
    warm_memory.touch_memory(8 << 20)
    assert held == [2048]


def test_reserved_pages_are_not_waited_for(monkeypatch):
    """Nobody reports them to the host. What they are is what `map_pages` says: this machine may have none."""
    waited = []
    inner = warm_memory.map_pages
    monkeypatch.setattr(warm_memory, "after_report", lambda: waited.append(1))
    for said, waits in (("2 MB, reserved", 0), ("2 MB, advised; 2 MB reserved, not used: 8 MiB needed, 2 MiB free", 1)):

        def map_pages(num_bytes, said=said):
            return replace(inner(num_bytes), pages=said)

        monkeypatch.setattr(warm_memory, "map_pages", map_pages)
        waited.clear()
        warm_memory.touch_memory(8 << 20)
        assert len(waited) == waits
