"""MappedFile: a file in memory, whose tensors are views of its pages.

Pages come from the disk when they are first read, or beforehand by `will_need`, and are given back by `give_back`; so a
checkpoint of any size is read with next to no memory of its own. It does not know names or formats. Floor 2.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from pathlib import Path

import torch

# Private and writable, so that torch takes the memory; nobody writes, and nothing is reserved for it.
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python names from 3.13 on


class MappedFile:
    """The bytes of one file; views keep the mapping alive after `MappedFile` is gone."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            if hasattr(mmap, "MAP_PRIVATE"):
                flags = mmap.MAP_PRIVATE | (_NO_RESERVE if os.uname().sysname == "Linux" else 0)
                self._mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            else:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._base = torch.frombuffer(self._mapping, dtype=torch.uint8, count=1).data_ptr()
        self._num_bytes = len(self._mapping)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        """A view; a copy where the numbers do not lie at multiples of their size."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize:
            raw = torch.frombuffer(self._mapping, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset)
            return raw.clone().view(dtype).view(shape)
        return torch.frombuffer(self._mapping, dtype=dtype, count=count, offset=offset).view(shape)

    def will_need(self, tensor: torch.Tensor) -> None:
        """Begin to read the pages of a contiguous view from the disk, and do not wait."""
        self._advise(tensor, getattr(mmap, "MADV_WILLNEED", None), outwards=True)

    def give_back(self, tensor: torch.Tensor) -> None:
        """Let go of the whole pages of a contiguous view; who looks at them again reads them again."""
        self._advise(tensor, getattr(mmap, "MADV_DONTNEED", None), outwards=False)

    def give_back_all(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def _advise(self, tensor: torch.Tensor, advice: int | None, outwards: bool) -> None:
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        inside = self._base <= start and stop <= self._base + self._num_bytes
        if advice is None or not inside or not tensor.is_contiguous():
            return  # a copy (see `tensor`), or a system without advice: nothing to gain
        page = mmap.PAGESIZE
        first, last = (start // page * page, -(-stop // page) * page) if outwards else (
            -(-start // page) * page, stop // page * page
        )  # fmt: skip
        if last > first:
            # Not `mmap.madvise`, which keeps the GIL. Advice that the system refuses changes nothing but time.
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(advice))
