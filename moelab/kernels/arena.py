"""Memory for the experts of one layout: own physical pages, 64-byte aligned, huge pages where possible.

One anonymous private mapping, bound to a NUMA node where one is named; a page becomes physical when it is
first written, so untouched experts cost nothing and no two experts share bytes. What the operating system
granted stands in ``huge_pages`` and ``binding`` (see ``pages``). Does not know what is stored. Floor 1.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np

from moelab.kernels.layout import ALIGNMENT, ExpertLayout
from moelab.kernels.pages import huge_bytes, map_pages

PAGE_BYTES = 4096


def stride_of(layout: ExpertLayout) -> int:
    """Bytes from one expert to the next."""
    unit = PAGE_BYTES if layout.expert_bytes >= PAGE_BYTES else ALIGNMENT
    return -(-layout.expert_bytes // unit) * unit


class ExpertArena:
    """N expert blocks: ``addresses`` int64 [N], ``arena[i]`` uint8 [expert_bytes].

    Experts of a page or more start on a page, so each has its own; smaller ones are packed at multiples
    of 64 B. The arena must outlive everything that computes with its addresses.
    Raises ``ValueError`` for a negative N, ``MemoryError`` where the mapping is refused.
    """

    def __init__(self, layout: ExpertLayout, num_experts: int, node: int | None = None) -> None:
        if num_experts < 0:
            raise ValueError(f"num_experts: expected 0 or more; got {num_experts}")
        self.layout = layout
        self.num_experts = num_experts
        self.stride = stride_of(layout)
        self.num_bytes = self.stride * num_experts
        try:
            pages = map_pages(self.num_bytes, node)
        except MemoryError as error:
            raise MemoryError(f"arena of {num_experts} experts: {error}: run fewer experts or layers") from error
        self.huge_pages, self.binding = pages.pages, pages.binding
        self._bytes: np.ndarray | None = pages.memory
        base = self._bytes.ctypes.data if num_experts else 0
        self.addresses = base + self.stride * np.arange(num_experts, dtype=np.int64)

    @property
    def huge_bytes(self) -> int | None:
        """Bytes that really sit on huge pages now (neighbouring mappings may count); ``None`` where nobody says."""
        return None if self._bytes is None else huge_bytes(self._bytes)

    @property
    def blocks(self) -> list[np.ndarray]:
        """What it holds in memory: one block, none when closed."""
        return [] if self._bytes is None else [self._bytes]

    @property
    def memory(self) -> np.ndarray:
        """All of it, uint8 [num_bytes]: expert after expert, ``stride`` bytes apart."""
        if self._bytes is None:
            raise ValueError("arena is closed: create a new one")
        return self._bytes

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
        self.addresses = np.zeros(0, np.int64)

    def __enter__(self) -> ExpertArena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
