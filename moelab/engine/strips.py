"""Tensors of a file into memory of their own, strip by strip, by all workers: joined, converted, on huge pages.

It does not know names or layers. Floor 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from moelab.kernels.pages import map_pages
from moelab.kernels.tasks import Tasks

STRIP_BYTES = 2 << 20  # of the source: what a worker reads and converts at once, in the caches
SMALL_BYTES = 1 << 20  # such tensors are copied where they are asked for

Fetch = Callable[[torch.Tensor], torch.Tensor]  # a view of a file -> the same numbers, read


def joined_copy(
    weights: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device, tasks: Tasks, fetch: Fetch
) -> torch.Tensor:
    """The weights below each other, as `dtype` on `device`; no part of them exists twice.

    On the CPU what is not small is filled by `tasks`, which are to be run before anyone reads it.
    """
    shape = (sum(len(weight) for weight in weights), *weights[0].shape[1:]) if weights[0].ndim else ()
    num_bytes = sum(weight.numel() for weight in weights) * dtype.itemsize
    if device.type != "cpu" or num_bytes < SMALL_BYTES:
        joined = torch.empty(shape, dtype=dtype, device=device)
        first = 0
        for weight in map(fetch, weights):
            joined[first : first + len(weight)].copy_(weight) if shape else joined.copy_(weight)
            first += len(weight) if shape else 0
        return joined
    joined = torch.from_numpy(map_pages(num_bytes).memory).view(dtype).view(shape)
    row = 0
    for weight in weights:
        height = max(STRIP_BYTES * len(weight) // max(weight.nbytes, 1), 1)
        for first in range(0, len(weight), height):
            part = weight[first : first + height]
            tasks.add(part.nbytes, partial(_copy, joined[row + first : row + first + len(part)], part, fetch))
        row += len(weight)
    return joined


def _copy(into: torch.Tensor, part: torch.Tensor, fetch: Fetch) -> None:
    into.copy_(fetch(part))
