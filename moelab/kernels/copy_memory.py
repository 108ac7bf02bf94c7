"""Memory of copies: many blocks in one mapping that is bound to a node, and pages given back block by block.

A block of a page or more begins on a page, so that no two share one. Floor 1: NumPy and the standard library.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moelab.kernels.layout import ALIGNMENT
from moelab.kernels.node_memory import withdraw
from moelab.kernels.pages import map_pages

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


def give_back(copy: CopyMemory) -> None:
    """The pages that are the copy's alone return to the system at once; its bytes are zero afterwards."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    first, last = copy.memory.ctypes.data, copy.memory.ctypes.data + len(copy.memory)
    first, last = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and not copy.pages.endswith("reserved"):  # huge pages of the reserve go with their mapping
        ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED)
        withdraw(first, last - first)
