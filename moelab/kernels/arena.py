"""Memory for the experts of one layout: own physical pages, 64-byte aligned, huge pages where possible.

One anonymous private mapping; a page becomes physical when it is first written, so untouched experts
cost nothing and no two experts share bytes. What the operating system granted stands in
``huge_pages`` (``"advised"`` or ``"unavailable: why"``). Does not know NUMA nodes (first touch decides)
nor what is stored. Floor 1: NumPy and the standard library.
"""

from __future__ import annotations

import mmap
from types import TracebackType

import numpy as np

from moelab.kernels.layout import ALIGNMENT, ExpertLayout

HUGE_PAGE_BYTES = 2 << 20
PAGE_BYTES = 4096


class ExpertArena:
    """N expert blocks: ``addresses`` int64 [N], ``arena[i]`` uint8 [expert_bytes].

    Experts of a page or more start on a page, so each has its own; smaller ones are packed at multiples
    of 64 B. The arena must outlive everything that computes with its addresses.
    Raises ``ValueError`` for a negative N, ``MemoryError`` where the mapping is refused.
    """

    def __init__(self, layout: ExpertLayout, num_experts: int) -> None:
        if num_experts < 0:
            raise ValueError(f"num_experts: expected 0 or more; got {num_experts}")
        self.layout = layout
        self.num_experts = num_experts
        unit = PAGE_BYTES if layout.expert_bytes >= PAGE_BYTES else ALIGNMENT
        self.stride = -(-layout.expert_bytes // unit) * unit
        self.num_bytes = self.stride * num_experts
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        try:
            self._map: mmap.mmap | None = mmap.mmap(-1, self.num_bytes + HUGE_PAGE_BYTES, **flags)
        except (OSError, OverflowError) as error:
            raise MemoryError(
                f"arena of {num_experts} experts: expected {self.num_bytes / 2**30:.2f} GiB of address space; "
                f"got {error}: run fewer experts or layers"
            ) from error
        self.huge_pages = self._advise_huge_pages()
        whole = np.frombuffer(self._map, np.uint8)
        first = -whole.ctypes.data % HUGE_PAGE_BYTES
        self._bytes: np.ndarray | None = whole[first : first + self.num_bytes]
        base = self._bytes.ctypes.data if num_experts else 0
        self.addresses = base + self.stride * np.arange(num_experts, dtype=np.int64)

    def _advise_huge_pages(self) -> str:
        assert self._map is not None
        if self.num_bytes < HUGE_PAGE_BYTES:
            return "unavailable: smaller than one huge page"
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return "unavailable: this platform has no MADV_HUGEPAGE"
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            return f"unavailable: {error}"
        return "advised"

    def __len__(self) -> int:
        return self.num_experts

    def __getitem__(self, expert: int) -> np.ndarray:
        """Writable view of one expert; valid while it is held, even after ``close``."""
        if self._bytes is None:
            raise ValueError("arena is closed: create a new one")
        if not 0 <= expert < self.num_experts:
            raise IndexError(f"expert: expected 0..{self.num_experts - 1}; got {expert}")
        start = expert * self.stride
        return self._bytes[start : start + self.layout.expert_bytes]

    def close(self) -> None:
        """Give the memory back; views that are still held keep it until they die. Twice is harmless."""
        self._bytes = None
        self._map = None
        self.addresses = np.zeros(0, np.int64)

    def __enter__(self) -> ExpertArena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
