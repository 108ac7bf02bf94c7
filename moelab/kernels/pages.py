"""Anonymous memory on huge pages of one NUMA node, and what the operating system really granted.

Tries reserved pages of 1 GB, then of 2 MB, then transparent huge pages by advice, then plain pages. Reserved ones are
taken where enough are free and little of the last would be wasted, and not for one node of several: the system keeps
them for a mapping from all nodes together, so that a bound one could run dry and die when it is written, unless all of
it were written when it is made, by one thread, hundreds of GB of a large model. ``pages`` says what was got, or why
not, with what was reserved and left; ``binding`` likewise; ``huge_bytes``, ``huge_share`` and ``granted`` ask the
system afterwards. Knows Linux; elsewhere plain pages. Does not know experts. Floor 1: NumPy, ``domain.machine`` and the
standard library.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from moelab.domain.allowed_cores import parse_core_list
from moelab.domain.system_files import text_of
from moelab.kernels.node_memory import check_room, check_rooms, promise

HUGE_PAGE_BYTES = 2 << 20
RESERVED_SIZES = {1 << 30: "1 GB", HUGE_PAGE_BYTES: "2 MB"}  # tried in this order
_HUGETLB = Path("/sys/kernel/mm/hugepages")
_NODES = Path("/sys/devices/system/node")
_MAP_HUGETLB, _SIZE_SHIFT = 0x40000, 26
_SYS_MBIND = {"x86_64": 237, "aarch64": 235}
_MPOL_BIND = 2
_TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ADVISED = "2 MB, advised"
_MOST_WASTED = 1 / 20  # of the bytes, by the last reserved page
Part = tuple[int, int, int | None]  # start, stop, node: bytes of a block that lie there


@dataclass(frozen=True)
class Pages:
    """``memory`` uint8 [num_bytes], aligned to 2 MB, physical when first written; the mapping lives as long as it.

    Huge pages are asked for where they are full; the rest, less than 2 MB, has plain ones.
    """

    memory: np.ndarray
    pages: str
    binding: str


def map_pages(num_bytes: int, node: int | None = None) -> Pages:
    """Private zeroed memory; ``node`` binds it to that NUMA node.

    Raises ``MemoryError`` where it is refused, or where the node, one of several, has no room for it.
    """
    scarce = node if several_nodes() else None  # alone, a node is all the memory there is: nothing can spill from it
    if scarce is not None:
        check_room(scarce, num_bytes)
    mapping, whole, memory, said = _aligned(num_bytes, node)
    binding = _bind(whole, node)
    if scarce is not None and binding == f"node{scarce}":
        promise(scarce, mapping, whole)
    return Pages(memory, said, binding)


def map_parts(num_bytes: int, parts: Sequence[Part]) -> Pages:
    """The same with each of ``parts``, which partition it in rising order, on a node of its own; ``None``: on any.

    The page at a border goes to the part that has most of it, and those beside it may be plain. Where a node has no
    room nothing is bound, and ``binding`` says so: bytes lie where they are written first.
    """
    page = mmap.PAGESIZE
    ends = {end: min((end + page // 2) // page * page, num_bytes) for part in parts for end in part[:2]}
    ends[num_bytes] = num_bytes
    rounded = [(ends[start], ends[stop], node) for start, stop, node in parts]
    bound = [(start, stop, node) for start, stop, node in rounded if node is not None and start < stop]
    if not bound:
        return map_pages(num_bytes)
    nodes = sorted({node for *_, node in bound})
    try:
        if several_nodes():
            check_rooms({node: sum(stop - start for start, stop, on in bound if on == node) for node in nodes})
    except MemoryError as error:
        return replace(map_pages(num_bytes), binding=f"none: {error}")
    mapping, _, memory, said = _aligned(num_bytes, nodes[0])
    bindings = [_bind(memory[start:stop], node) for start, stop, node in bound]
    for (start, stop, node), binding in zip(bound, bindings, strict=True):
        if several_nodes() and binding == f"node{node}":
            promise(node, mapping, memory[start:stop])
    return Pages(memory, said, ", ".join(sorted(set(bindings))))


def _aligned(num_bytes: int, node: int | None) -> tuple[mmap.mmap, np.ndarray, np.ndarray, str]:
    """A mapping, all of its bytes, those that are asked for, and on which pages."""
    mapping, said = _map(num_bytes, node)
    whole = np.frombuffer(mapping, np.uint8)
    first = -whole.ctypes.data % HUGE_PAGE_BYTES
    if said.startswith(_ADVISED) and hasattr(mmap, "MADV_NOHUGEPAGE"):
        # What would not fill its huge page would take all of it: 2 MB for each small mapping.
        tail = first + num_bytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        mapping.madvise(mmap.MADV_NOHUGEPAGE, tail, len(mapping) - tail)
    return mapping, whole, whole[first : first + num_bytes], said


def _map(num_bytes: int, node: int | None) -> tuple[mmap.mmap, str]:
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    left: list[str] = []  # what is reserved and was not taken
    for page_bytes, name in RESERVED_SIZES.items() if num_bytes >= HUGE_PAGE_BYTES else ():
        length, free = -(-num_bytes // page_bytes) * page_bytes, free_reserved_bytes(page_bytes, node)
        if free == 0:
            continue
        if why := _why_not_reserved(num_bytes, length, free, node):
            left.append(f"{name} reserved, not used: {why}")
            continue
        try:
            return _map_reserved(length, page_bytes), "; ".join([f"{name}, reserved", *left])
        except OSError as error:  # somebody else was faster: the next kind
            left.append(f"{name} reserved, not used: {error}")
    try:
        mapping = mmap.mmap(-1, num_bytes + HUGE_PAGE_BYTES, **private)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"memory: expected {num_bytes / 2**30:.2f} GiB of address space; got {error}") from error
    return mapping, "; ".join([_advise(mapping, num_bytes), *left])


def _why_not_reserved(num_bytes: int, length: int, free: int, node: int | None) -> str:
    """Empty where ``length`` bytes of ``free`` reserved ones can be had for ``num_bytes``."""
    if node is not None and several_nodes():
        return f"memory of one node of several (node{node})"
    if length > free:
        return f"{length >> 20} MiB needed, {free >> 20} MiB free"
    if length - num_bytes > max(_MOST_WASTED * num_bytes, HUGE_PAGE_BYTES):
        return f"{(length - num_bytes) >> 20} MiB would be wasted"
    return ""


def _map_reserved(length: int, page_bytes: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB | (page_bytes.bit_length() - 1) << _SIZE_SHIFT
    return mmap.mmap(-1, length, flags=flags)


def _advise(mapping: mmap.mmap, num_bytes: int) -> str:
    """Ask for transparent huge pages; what came of it."""
    if num_bytes < HUGE_PAGE_BYTES:
        return "plain: smaller than one huge page"
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return "plain: this platform has no MADV_HUGEPAGE"
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        return f"plain: {error}"
    if "[never]" in text_of(_TRANSPARENT):  # advice is taken without a word
        return "plain: transparent_hugepage is never"
    return _ADVISED


def several_nodes() -> bool:
    """Has this machine more than one NUMA node with memory?"""
    return len(parse_core_list(text_of(f"{_NODES}/has_memory") or "0")) > 1


def free_reserved_bytes(page_bytes: int, node: int | None = None) -> int:
    """Bytes of reserved huge pages of this size (of ``node``, else of all) that nobody has taken; 0 without any."""
    folder = _HUGETLB if node is None else f"{_NODES}/node{node}/hugepages"
    return int(text_of(f"{folder}/hugepages-{page_bytes // 1024}kB/free_hugepages") or 0) * page_bytes


def bytes_in_reserve(sizes: Iterable[int]) -> int:
    """Of unbound mappings of these sizes, made one after the other now, the bytes that would lie on reserved pages:
    they need no memory that the system calls available."""
    free = {size: _unclaimed_bytes(size) for size in RESERVED_SIZES}
    total = 0
    for num_bytes in sizes:
        for page_bytes in RESERVED_SIZES if num_bytes >= HUGE_PAGE_BYTES else ():
            length = -(-num_bytes // page_bytes) * page_bytes
            if free[page_bytes] and not _why_not_reserved(num_bytes, length, free[page_bytes], None):
                free[page_bytes] -= length
                total += num_bytes
                break
    return total


def _unclaimed_bytes(page_bytes: int) -> int:
    """Free reserved pages that no mapping was promised."""
    promised = int(text_of(f"{_HUGETLB}/hugepages-{page_bytes // 1024}kB/resv_hugepages") or 0)
    return max(0, free_reserved_bytes(page_bytes) - promised * page_bytes)


def _bind(mapping: np.ndarray, node: int | None) -> str:
    """The whole mapping: the kernel refuses parts of huge pages."""
    if node is None:
        return "none: the node of the first writer"
    number = _SYS_MBIND.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return f"unavailable: {platform.system()} {platform.machine()} has no mbind here"
    mask = np.zeros(16, np.uint64)
    mask[node // 64] = np.uint64(1) << np.uint64(node % 64)
    length = -(-len(mapping) // mmap.PAGESIZE) * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    status = libc.syscall(
        ctypes.c_long(number), ctypes.c_void_p(mapping.ctypes.data), ctypes.c_ulong(length), ctypes.c_int(_MPOL_BIND),
        ctypes.c_void_p(mask.ctypes.data), ctypes.c_ulong(64 * len(mask)), ctypes.c_uint(0),
    )  # fmt: skip
    return f"node{node}" if status == 0 else f"unavailable: {os.strerror(ctypes.get_errno())}"


def is_reserved(pages: str) -> bool:
    """Is this text of ``Pages`` one of huge pages of the reserve?"""
    return pages.split(";")[0].endswith(", reserved")


def huge_bytes(memory: np.ndarray) -> int | None:
    """Bytes of the mappings around ``memory`` that really sit on huge pages now; ``None`` where nobody says."""
    found = _resident([memory])
    return None if found is None else found[1]


def huge_share(memories: Iterable[np.ndarray]) -> float | None:
    """Of the bytes in memory of the mappings around these blocks the part on huge pages; ``None`` where nobody says."""
    found = _resident(memories)
    return None if found is None or found[0] == 0 else found[1] / found[0]


def granted(pages: str, memories: Iterable[np.ndarray]) -> str:
    """``pages``, what was asked for with success, and the share that is huge by now."""
    share = huge_share(memories)
    return pages if share is None else f"{pages} ({share:.0%} huge)"


def _resident(memories: Iterable[np.ndarray]) -> tuple[int, int] | None:
    """(bytes in memory, those on huge pages) of the mappings that hold some of these blocks."""
    blocks = sorted((block.ctypes.data, block.ctypes.data + len(block)) for block in memories if len(block))
    smaps = Path("/proc/self/smaps")
    if not smaps.is_file() or not blocks:
        return None
    firsts = [first for first, _ in blocks]
    lasts = list(accumulate((last for _, last in blocks), max))
    present = huge = 0
    inside = False
    with smaps.open() as lines:
        for line in lines:
            if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                before = bisect_left(firsts, int(bounds[2], 16))  # blocks that begin below its end
                inside = before > 0 and lasts[before - 1] > int(bounds[1], 16)
            elif inside and line.startswith(("Rss:", "AnonHugePages:", "Private_Hugetlb:")):
                num_bytes = int(line.split()[1]) * 1024
                present += num_bytes if not line.startswith("Anon") else 0  # which are in Rss; reserved ones are not
                huge += num_bytes if not line.startswith("Rss") else 0
    return present, huge
