"""payload: the bytes of an expert that go into a slot, from its home.

Where home and slots have one format these are the bytes at home. Elsewhere the weights are read, rounded to the format
of the slots and packed again: bf16 to the nearest, int4 as `kernels.quantise` does it. Floor 2: NumPy and the kernels'
packing.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from moelab.kernels.job import GROUP
from moelab.kernels.layout import ExpertLayout, bf16_to_float32, float32_to_bf16
from moelab.kernels.quantise import quantise_int4
from moelab.kernels.routed import RoutedExperts


def home_block(routed: RoutedExperts, expert: int) -> np.ndarray:
    """uint8 [expert_bytes] at home: a view, never to be written; put together where the expert lies in pieces."""
    placement = routed.placement
    if placement is not None and len(placement.pieces) > placement.num_experts - placement.homeless.sum():
        return placement[expert]
    size = routed.layout.expert_bytes
    memory = (ctypes.c_char * size).from_address(int(routed.address_of_expert[expert]))
    return np.frombuffer(memoryview(memory), np.uint8)


def in_format(block: np.ndarray, layout: ExpertLayout, wanted: ExpertLayout) -> np.ndarray:
    """A packed expert of `layout` as one of `wanted`, which has the same sizes; itself where the formats are one."""
    if layout.weight_format == wanted.weight_format:
        return block
    packed = np.empty(wanted.expert_bytes, np.uint8)
    sources = zip(layout.unpack_expert(block), layout.shapes, strict=True)
    wide = [_float32(source, layout, columns) for source, (_, columns) in sources]
    if wanted.weight_format == "int4_g32":
        wanted.pack_expert(packed, *map(quantise_int4, wide))
    elif wanted.weight_format == "bf16":
        wanted.pack_expert(packed, *map(float32_to_bf16, wide))
    else:
        wanted.pack_expert(packed, *wide)
    return packed


def _float32(source: Any, layout: ExpertLayout, columns: int) -> np.ndarray:
    """One projection as `unpack_expert` gives it -> float32 [R, C]."""
    if layout.weight_format == "float32":
        wide: np.ndarray = source
        return wide
    if layout.weight_format == "bf16":
        return bf16_to_float32(source)
    numbers, scale = source
    if layout.weight_format == "int4_g32":
        words = numbers.view(np.uint32)[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))
        numbers = ((words & 15).astype(np.int8) - 8).reshape(len(numbers), -1)
    scales = np.repeat(bf16_to_float32(scale), GROUP, axis=1)
    return numbers[:, :columns].astype(np.float32) * scales[:, :columns]
