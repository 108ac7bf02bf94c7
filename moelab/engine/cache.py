"""LatentCache: what MLA remembers of each sequence, kv_lora + rope numbers per token and layer.

One row per sequence, all rows padded to one capacity that doubles when a sequence outgrows it; the
row's own length says how far it is valid. Rows are exchanged as sequences end, so that the active
ones are always the first. It does not know models beyond the width. Floor 2.
"""

from __future__ import annotations

import torch

FIRST_CAPACITY = 256


class LatentCache:
    """`layers[l]` is [rows, capacity, width]; `lengths[row]` counts the tokens that are valid."""

    def __init__(self, num_layers: int, num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        # Zeros, not garbage: masked positions are multiplied by 0, and 0 * NaN is NaN.
        self.layers = [
            torch.zeros(num_rows, FIRST_CAPACITY, width, dtype=dtype, device=device) for _ in range(num_layers)
        ]
        self.lengths = [0] * num_rows

    @property
    def capacity(self) -> int:
        """Tokens that fit in a row before it grows."""
        return self.layers[0].shape[1]

    @property
    def cache_bytes(self) -> int:
        """Bytes held, padding included."""
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in every row; one layer after the other, to keep the peak low."""
        if length <= self.capacity:
            return
        capacity = max(length, 2 * self.capacity)
        for index, old in enumerate(self.layers):
            new = old.new_zeros(old.shape[0], capacity, old.shape[2])
            new[:, : old.shape[1]] = old
            self.layers[index] = new

    def clear(self, row: int) -> None:
        """Forget one sequence; its memory stays for the next."""
        self.lengths[row] = 0

    @torch.inference_mode()  # a cache that grew within a step holds inference tensors, and refuses others
    def move(self, source: int, target: int) -> None:
        """Row `source` becomes row `target`; `source` is free afterwards."""
        if source != target:
            length = self.lengths[source]
            for layer in self.layers:
                layer[target, :length] = layer[source, :length]
            self.lengths[target] = length
        self.lengths[source] = 0
