"""MappedFile: a file whose tensors are views of its mapping, to be sliced for nothing and fetched strip by strip.

A view costs no memory and reads nothing until it is touched. `fetch` reads what a view covers into a buffer of the
thread: plain reads of 2 MB, in the order of the file, keep the disk at work where page faults of a mapping and advice
to read ahead did not (docs/log.md). It does not know names or formats. Floor 2.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from pathlib import Path

import torch

# Private and writable, so that torch takes the memory; nobody writes, and nothing is reserved for it.
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python names from 3.13 on
STREAMS = 2  # of reads in one file that each run on: the words of a matrix, and its scales


class MappedFile:
    """The bytes of one file; views keep the mapping alive after `MappedFile` is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if hasattr(mmap, "MAP_PRIVATE"):
                flags = mmap.MAP_PRIVATE | (_NO_RESERVE if os.uname().sysname == "Linux" else 0)
                self._mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            else:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.base = torch.frombuffer(self._mapping, dtype=torch.uint8, count=1).data_ptr()
        self.num_bytes = len(self._mapping)
        # A stream of its own for each keeps the system's own reading ahead undisturbed.
        self._streams = [path.open("rb", buffering=0) for _ in range(STREAMS)]
        self._buffers = threading.local()

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        """A view; a copy where the numbers do not lie at multiples of their size."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize:
            raw = torch.frombuffer(self._mapping, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset)
            return raw.clone().view(dtype).view(shape)
        return torch.frombuffer(self._mapping, dtype=dtype, count=count, offset=offset).view(shape)

    def fetch(self, view: torch.Tensor, stream: int = 0) -> torch.Tensor:
        """The same numbers, read; valid until this thread fetches from the stream again. OSError for a shorter file.

        A view that is not contiguous, or a copy (see `tensor`), comes back as it is.
        """
        offset = view.data_ptr() - self.base
        inside = offset >= 0 and offset + view.nbytes <= self.num_bytes
        if not inside or not view.is_contiguous() or view.nbytes == 0 or not hasattr(os, "preadv"):
            return view
        buffers: dict[int, torch.Tensor] = self._buffers.__dict__.setdefault("of_stream", {})
        buffer = buffers.get(stream)
        if buffer is None or buffer.nbytes < view.nbytes:
            buffer = buffers[stream] = torch.empty(view.nbytes, dtype=torch.uint8)
        into, got = buffer[: view.nbytes].numpy().data, 0
        while got < view.nbytes:
            count = os.preadv(self._streams[stream].fileno(), [into[got:]], offset + got)
            if count == 0:
                raise OSError(
                    f"{self.path}: expected {self.num_bytes} bytes, got {offset + got}: it changed; load again"
                )
            got += count
        return buffer[: view.nbytes].view(view.dtype).view(view.shape)

    def close(self) -> None:
        """No more fetching; the mapping goes with its last view."""
        for stream in self._streams:
            stream.close()
