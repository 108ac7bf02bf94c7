"""Huge pages and binding, as far as this machine has them: what is reported is what /proc says."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from moelab.kernels import ExpertArena, ExpertLayout
from moelab.kernels import pages as module
from moelab.kernels.pages import (
    HUGE_PAGE_BYTES,
    bytes_in_reserve,
    free_reserved_bytes,
    granted,
    huge_bytes,
    huge_share,
    is_reserved,
    map_pages,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
RESERVED = Path("/proc/sys/vm/nr_hugepages")


def test_memory_is_aligned_zeroed_and_writable():
    for num_bytes in (0, 1, 4096, HUGE_PAGE_BYTES + 1, 5_000_000):
        pages = map_pages(num_bytes)
        assert pages.memory.shape == (num_bytes,)
        assert not pages.memory.any()
        pages.memory[:] = 7
        if num_bytes:
            assert pages.memory.ctypes.data % HUGE_PAGE_BYTES == 0
        assert pages.binding.startswith("none")
    assert "smaller than one huge page" in map_pages(4096).pages


@linux
def test_advised_pages_become_huge_where_the_system_allows_it():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    pages = map_pages(16 * HUGE_PAGE_BYTES)
    pages.memory[::4096] = 1
    granted = huge_bytes(pages.memory)
    if "[never]" in setting:
        assert granted == 0
        assert pages.pages.startswith("plain: transparent_hugepage is never")
    elif pages.pages == "2 MB, advised":
        assert granted is not None
        assert granted >= 8 * HUGE_PAGE_BYTES  # the system may be short of whole pages, but not of most


@linux
def test_the_share_that_is_huge_is_of_these_blocks_alone():
    """One block on huge pages, if the system gives them, and one on plain ones; together what both have."""
    assert huge_share([]) is None
    whole = np.frombuffer(mmap.mmap(-1, 34 * HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    first = -whole.ctypes.data % HUGE_PAGE_BYTES
    huge, plain = whole[first:][: 16 * HUGE_PAGE_BYTES], whole[first:][16 * HUGE_PAGE_BYTES :]
    for memory, advice in ((huge, 14), (plain, 15)):  # MADV_HUGEPAGE, MADV_NOHUGEPAGE: two mappings from here on
        status = ctypes.CDLL(None).madvise(
            ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(len(memory) // 4096 * 4096), advice
        )
        assert status == 0
        memory[::4096] = 1
    assert huge_share([plain]) == 0
    assert granted("plain", [plain[4096:8192]]) == "plain (0% huge)"
    share = huge_bytes(huge) / len(huge)
    assert huge_share([huge[5000:6000]]) == pytest.approx(share, abs=0.01)
    both = share * len(huge) / (len(huge) + len(plain))
    assert huge_share([plain[:100], huge[:100]]) == pytest.approx(both, abs=0.07)
    assert huge_share([huge[-50:], plain[:100], plain[70:]]) == pytest.approx(both, abs=0.07)


@linux
@pytest.mark.parametrize(
    ("huge", "large", "claimed", "sizes", "expected"),
    [
        (600, 0, 0, [400, 400, 400, 400], [400, 400, 400]),  # as many as there is room for
        (600, 0, 150, [400, 400, 400, 400], [400, 400]),  # some were promised to others
        (0, 3, 0, [614, 614], []),  # a third of a page of 1 GB would be wasted
        (400, 2, 0, [1000, 1000, 600, 600], [1000, 1000, 600]),  # each size of page for what fits it
        (10, 0, 0, [1, 1], []),  # less than a page of 2 MB
    ],
)
def test_what_would_lie_on_reserved_pages(tmp_path, monkeypatch, huge, large, claimed, sizes, expected):
    """``sizes`` in MiB; as `map_pages` would take them one after the other."""
    for size, count in (("1048576", large), ("2048", huge)):
        folder = tmp_path / f"hugepages-{size}kB"
        folder.mkdir()
        (folder / "free_hugepages").write_text(f"{count}\n")
        (folder / "resv_hugepages").write_text(f"{claimed if size == '2048' else 0}\n")
    monkeypatch.setattr(module, "_HUGETLB", tmp_path)
    assert bytes_in_reserve([size << 20 for size in sizes]) == sum(expected) << 20


@linux
def test_reserved_pages_are_taken_and_given_back():
    try:
        before = int(RESERVED.read_text())
        RESERVED.write_text(str(before + 8))
    except OSError:
        pytest.skip("no right to reserve huge pages")
    try:
        free = free_reserved_bytes(HUGE_PAGE_BYTES)
        if free < 4 * HUGE_PAGE_BYTES:
            pytest.skip("no right to reserve huge pages")
        size = 3 * HUGE_PAGE_BYTES + 100
        most = free // HUGE_PAGE_BYTES
        assert bytes_in_reserve([size] * most) == most // 4 * size
        pages = map_pages(size, node=0)
        assert pages.pages == "2 MB, reserved"
        assert bytes_in_reserve([size] * most) == (most - 4) // 4 * size, "promised, though nothing is written yet"
        assert pages.binding == "node0"
        pages.memory[:] = 1
        assert huge_bytes(pages.memory) == 4 * HUGE_PAGE_BYTES
        assert free_reserved_bytes(HUGE_PAGE_BYTES) == free - 4 * HUGE_PAGE_BYTES
        del pages
        assert free_reserved_bytes(HUGE_PAGE_BYTES) == free
        refused = map_pages(free + HUGE_PAGE_BYTES).pages
        assert not is_reserved(refused)
        assert "2 MB reserved, not used: " in refused
    finally:
        RESERVED.write_text(str(before))


@linux
def test_binding_is_what_the_kernel_reports():
    layout = ExpertLayout(1024, 1024, "int4_g32")
    with ExpertArena(layout, 4, node=0) as arena:
        assert arena.binding == "node0"
        for expert in range(4):
            arena[expert][:] = 1
        line = next(
            line
            for line in Path("/proc/self/numa_maps").read_text().splitlines()
            if line.split()[1].startswith("bind:0") and "anon=" in line
        )
        pages = {part.split("=")[0]: part.split("=")[1] for part in line.split() if "=" in part}
        assert int(pages["N0"]) == int(pages["anon"]) > 0
    with ExpertArena(layout, 1, node=700) as nowhere:
        assert nowhere.binding.startswith("unavailable: ")
        nowhere[0][:] = 1
        assert np.count_nonzero(nowhere[0]) == layout.expert_bytes


def test_less_than_a_huge_page_takes_no_whole_one():
    """A block just over one huge page: no second one is taken for its rest."""
    pages = map_pages(HUGE_PAGE_BYTES + 8192)
    pages.memory[:] = 1
    granted = huge_bytes(pages.memory)
    if granted is None:
        pytest.skip("reads /proc")
    assert granted <= HUGE_PAGE_BYTES or is_reserved(pages.pages)
    assert pages.memory.sum() == HUGE_PAGE_BYTES + 8192


@linux
def test_a_fallback_says_why(tmp_path, monkeypatch):
    """A system of files: 3 pages of 1 GB and 600 of 2 MB are reserved; then of two nodes; then without huge pages."""
    for size, count in (("1048576", 3), ("2048", 600)):
        folder = tmp_path / f"hugepages-{size}kB"
        folder.mkdir()
        (folder / "free_hugepages").write_text(f"{count}\n")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(module, "_HUGETLB", tmp_path)
    monkeypatch.setattr(module, "_TRANSPARENT", tmp_path / "enabled")
    # This machine may have none: plain memory in their place.
    monkeypatch.setattr(module, "_map_reserved", lambda length, page_bytes: mmap.mmap(-1, length + HUGE_PAGE_BYTES))
    monkeypatch.setattr(module, "_why_not_reserved", why := Noted(module._why_not_reserved))
    mib = 1 << 20
    assert map_pages(1 * mib).pages == "plain: smaller than one huge page"
    assert not why.asked
    map_pages(513 * mib)
    map_pages(1024 * mib - 5)
    map_pages(5000 * mib)
    assert [said for _, said in why.asked] == [
        "511 MiB would be wasted", "", "", "5120 MiB needed, 3072 MiB free", "5000 MiB needed, 1200 MiB free",
    ]  # fmt: skip
    assert map_pages(5000 * mib).pages == (
        "2 MB, advised; 1 GB reserved, not used: 5120 MiB needed, 3072 MiB free; "
        "2 MB reserved, not used: 5000 MiB needed, 1200 MiB free"
    )
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert map_pages(5000 * mib).pages.startswith("plain: transparent_hugepage is never; 1 GB reserved, not used")
    monkeypatch.setattr(module, "several_nodes", lambda: True)
    monkeypatch.setattr(module, "free_reserved_bytes", lambda page_bytes, node: 8 << 30)
    monkeypatch.setattr(module, "check_room", lambda *_: None)
    assert "not used: memory of one node of several (node0)" in map_pages(64 * mib, 0).pages


class Noted:
    """What a function was asked, and what it said."""

    def __init__(self, function):
        self.function, self.asked = function, []

    def __call__(self, *arguments):
        said = self.function(*arguments)
        self.asked.append((arguments, said))
        return said
