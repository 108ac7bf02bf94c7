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
    """One block on huge pages, one on plain ones by advice, and half of each."""
    huge, plain = (map_pages(16 * HUGE_PAGE_BYTES).memory for _ in range(2))
    if huge_share([huge]) is not None:
        pytest.skip("the mappings lie beside another one")
    assert (
        ctypes.CDLL(None).madvise(ctypes.c_void_p(plain.ctypes.data), ctypes.c_size_t(len(plain)), 15) == 0
    )  # NOHUGEPAGE
    for memory in (huge, plain):
        memory[::4096] = 1
    assert huge_share([plain]) == 0
    assert granted("plain", [plain[4096:8192]]) == "plain (0% huge)"
    if huge_bytes(huge) != len(huge):
        pytest.skip("the system gave less than all huge pages")
    assert huge_share([huge]) == 1
    assert huge_share([plain[:100], huge[5000:6000]]) == pytest.approx(0.5, abs=0.02)
    assert huge_share([]) is None


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
        pages = map_pages(3 * HUGE_PAGE_BYTES + 100, node=0)
        assert pages.pages == "2 MB, reserved"
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
