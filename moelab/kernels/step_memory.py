"""StepMemory: the buffers that the lists of operations of one model share, and the constants that they read.

Lists for different numbers of tokens never run at the same time, so of a name there is one block, as large as the
largest list wants it. A block that has become too small lives on with the lists that hold its address; sizes are powers
of two, so that all blocks together are below twice the largest. Does not know operations. Floor 1: NumPy.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from moelab.kernels.job import Activation
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.scratch import Scratch, aligned


class StepMemory:
    """``num_bytes`` is what is held, blocks that only a list still holds included."""

    def __init__(self) -> None:
        self._block_of_name: dict[str, np.ndarray] = {}
        self._scratch_of_key: dict[tuple[Any, ...], Scratch] = {}
        self._constant_of_name: dict[str, np.ndarray] = {}
        self._alive: list[weakref.ref[np.ndarray]] = []

    def block(self, name: str, num_bytes: int) -> np.ndarray:
        """uint8 [num_bytes] at a multiple of 64 B, contents of anybody; to be held by who takes its address."""
        block = self._block_of_name.get(name)
        if block is None or len(block) < num_bytes:
            block = aligned(1 << max(num_bytes - 1, 63).bit_length())
            self._block_of_name[name] = block
            self._alive = [ref for ref in self._alive if ref() is not None]
            self._alive.append(weakref.ref(block if block.base is None else block.base))
        return block[:num_bytes]

    def scratch(
        self, name: str, layout: ExpertLayout, num_experts: int, activation: Activation, isa: str, num_tokens: int,
        num_pairs: int,
    ) -> Scratch:  # fmt: skip
        """Room for a step of routed experts. Its record stays where it is when it grows, so that all lists follow."""
        key = (name, layout, num_experts, activation, isa)
        scratch = self._scratch_of_key.get(key)
        if scratch is None:
            scratch = self._scratch_of_key[key] = Scratch(layout, num_experts, activation, isa)
        scratch.reserve(num_tokens, num_pairs)
        return scratch

    def constant(self, name: str, values: Any) -> np.ndarray:
        """float32 copy of ``values``, one of a name. ``ValueError`` where the name has other values already."""
        kept = self._constant_of_name.setdefault(name, values)
        if kept is values:
            kept = self._constant_of_name[name] = np.array(values, np.float32, order="C")
        elif not np.array_equal(kept, values, equal_nan=True):
            raise ValueError(f"constant {name!r}: expected the values it has; got others: name them apart")
        return kept

    @property
    def num_bytes(self) -> int:
        blocks = (ref() for ref in self._alive)
        return (
            sum(block.nbytes for block in blocks if block is not None)
            + sum(scratch.num_bytes for scratch in self._scratch_of_key.values())
            + sum(constant.nbytes for constant in self._constant_of_name.values())
        )
