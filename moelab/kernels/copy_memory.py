"""Memory of copies: many blocks in one mapping that is bound to a node, and pages given back block by block.

A block of a page or more begins on a page, so that no two share one. Floor 1: NumPy and the standard library.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moelab.kernels.layout import ALIGNMENT
from moelab.kernels.node_memory import check_room, promise_again, withdraw
from moelab.kernels.pages import is_reserved, map_pages, several_nodes

_MADV_DONTNEED = 4


@dataclass(frozen=True, eq=False)
class CopyMemory:
    """``memory`` uint8 [bytes of the copy]; its mapping lives as long as any block of it. ``pages`` and ``binding``: as
    ``pages.map_pages`` says."""

    memory: np.ndarray
    pages: str
    binding: str


def take_memory(sizes: Sequence[int], memory_node: int | None) -> list[CopyMemory]:
    """One block of each size; raises ``MemoryError`` where the mapping is refused or the node has no room."""
    if not sizes:
        return []
    units = [mmap.PAGESIZE if size >= mmap.PAGESIZE else ALIGNMENT for size in sizes]
    starts, end = [], 0
    for size, unit in zip(sizes, units, strict=True):
        starts.append(-(-end // unit) * unit)
        end = starts[-1] + size
    mapped = map_pages(end, memory_node)
    return [
        CopyMemory(mapped.memory[start : start + size], mapped.pages, mapped.binding)
        for start, size in zip(starts, sizes, strict=True)
    ]


def give_back(copy: CopyMemory) -> bool:
    """The pages that are the copy's alone return to the system at once; its bytes are zero afterwards.

    ``False`` where the system keeps them until the mapping goes (locked memory, for one): they still count as taken.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return False
    first, last = _own_pages(copy)
    if first < last:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED):
            return False
        withdraw(first, last - first)
    return True


def take_again(copies: Iterable[CopyMemory], memory_node: int | None) -> None:
    """Copies on one node that were given back will be written again, where they were.

    Raises ``MemoryError`` where the node has no room for them by now; then nothing is promised to them.
    """
    pages = [(first, last) for first, last in map(_own_pages, copies) if first < last]
    if memory_node is not None and several_nodes():
        check_room(memory_node, sum(last - first for first, last in pages))
    for first, last in pages:
        promise_again(first, last - first)


def _own_pages(copy: CopyMemory) -> tuple[int, int]:
    """[first, last) bytes of whole pages that no other copy shares; none where they go with their mapping only."""
    first, last = copy.memory.ctypes.data, copy.memory.ctypes.data + len(copy.memory)
    if is_reserved(copy.pages):  # huge pages of the reserve
        return first, first
    return -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
