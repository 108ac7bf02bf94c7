"""Tensors of a file into memory of their own, strip by strip, by all workers: joined, converted, on huge pages.

It does not know names or layers. Floor 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from moelab.kernels.pages import map_pages
from moelab.kernels.tasks import Tasks

# Of the source: what a worker reads and converts at once, in the caches; with what comes along, in a huge page.
STRIP_BYTES = (2 << 20) - (32 << 10)
SMALL_BYTES = 1 << 20  # such tensors are copied where they are asked for


class Source(Protocol):
    """Where views come from: a checkpoint."""

    def fetch(self, view: torch.Tensor) -> torch.Tensor:
        """The same numbers, read; valid until the same thread fetches again."""

    def ahead(self, view: torch.Tensor) -> None:
        """The same thread will fetch this soon."""


class Memory:
    """Tensors that are in memory already."""

    def fetch(self, view: torch.Tensor) -> torch.Tensor:
        return view

    def ahead(self, view: torch.Tensor) -> None:
        pass


def joined_copy(
    weights: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device, tasks: Tasks, source: Source
) -> torch.Tensor:
    """The weights below each other, as `dtype` on `device`; no part of them exists twice.

    On the CPU what is not small is filled by `tasks`, which are to be run before anyone reads it.
    """
    shape = (sum(len(weight) for weight in weights), *weights[0].shape[1:]) if weights[0].ndim else ()
    num_bytes = sum(weight.numel() for weight in weights) * dtype.itemsize
    if device.type != "cpu" or num_bytes < SMALL_BYTES:
        joined = torch.empty(shape, dtype=dtype, device=device)
        first = 0
        for weight in map(source.fetch, weights):
            joined[first : first + len(weight)].copy_(weight) if shape else joined.copy_(weight)
            first += len(weight) if shape else 0
        return joined
    joined = torch.from_numpy(map_pages(num_bytes).memory).view(dtype).view(shape)
    row = 0
    for weight in weights:
        height = max(STRIP_BYTES * len(weight) // max(weight.nbytes, 1), 1)
        for first in range(0, len(weight), height):
            part = weight[first : first + height]
            into = joined[row + first : row + first + len(part)]
            tasks.add(part.nbytes, partial(_copy, into, part, source), partial(source.ahead, part))
        row += len(weight)
    return joined


def _copy(into: torch.Tensor, part: torch.Tensor, source: Source) -> None:
    part = source.fetch(part)
    if into.dtype is part.dtype and part.is_contiguous():
        # Not by torch, which calls threads of its own for it: they wait for the cores that the workers have.
        np.copyto(into.view(torch.uint8).numpy(), part.view(torch.uint8).numpy())
    else:
        into.copy_(part)
