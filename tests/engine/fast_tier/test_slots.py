"""Slots hold exactly what was packed, and compute what the float64 reference computes with it."""

import numpy as np
import pytest
import torch

from moelab.engine.fast_tier.payload import in_format
from moelab.engine.fast_tier.slot_memory import SlotMemory
from moelab.kernels import ExpertLayout
from moelab.kernels.generated import fill_expert
from moelab.kernels.reference import TOLERANCE_BF16, TOLERANCE_F32, reference_experts, relative_error, unpack_expert

CPU = torch.device("cpu")
SIZES = [(64, 32), (100, 48), (33, 17), (256, 128), (128, 160)]


def one_expert(hidden, intermediate, weight_format, seed=0):
    layout = ExpertLayout(hidden, intermediate, weight_format)
    block = np.zeros(layout.expert_bytes, np.uint8)
    fill_expert(block, layout, seed=seed)
    return layout, block


@pytest.mark.parametrize("weight_format", ["int4_g32", "bf16", "float32"])
@pytest.mark.parametrize(("hidden", "intermediate"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_slot_computes_what_the_reference_computes(hidden, intermediate, weight_format, dtype):
    """bf16 products round gate, up, hidden and output to 8 bits: seen up to 6e-3 of the norm; float32 up to 4e-7."""
    layout, block = one_expert(hidden, intermediate, weight_format, seed=hidden)
    other = one_expert(hidden, intermediate, weight_format, seed=hidden + 1)[1]
    memory = SlotMemory(layout, 3, CPU, dtype)
    for slot, packed in ((0, other), (1, block), (2, other)):
        memory.write(slot, packed)
    x = np.random.default_rng(hidden).normal(size=(5, hidden)).astype(np.float32)
    got = memory.forward(1, memory.padded(torch.from_numpy(x))).numpy()
    truth = reference_experts(x, np.zeros((5, 1), int), np.ones((5, 1), np.float32), [block], layout)
    assert got.shape == truth.shape
    assert relative_error(got, truth) <= (TOLERANCE_F32 if dtype is torch.float32 else 2 * TOLERANCE_BF16)


@pytest.mark.parametrize("wanted", ["int4_g32", "bf16", "float32"])
@pytest.mark.parametrize("home", ["int4_g32", "int8_g32", "bf16", "float32"])
@pytest.mark.parametrize(("hidden", "intermediate"), [(100, 48), (33, 17)])
def test_an_expert_in_another_format(home, wanted, hidden, intermediate):
    """A step of the narrower format at most: int4 has steps of an eighth of the largest of its group."""
    layout, block = one_expert(hidden, intermediate, home)
    target = ExpertLayout(hidden, intermediate, wanted)
    moved = in_format(block, layout, target)
    assert moved.shape == (target.expert_bytes,)
    for before, after in zip(unpack_expert(block, layout), unpack_expert(moved, target), strict=True):
        if home == wanted or wanted == "float32":
            np.testing.assert_array_equal(after, before.astype(np.float32))
        elif wanted == "bf16":
            np.testing.assert_allclose(after, before, rtol=2**-8)
        else:
            groups = np.pad(np.abs(before), ((0, 0), (0, -before.shape[1] % 32))).reshape(len(before), -1, 32)
            step = np.repeat(groups.max(2) / 8, 32, axis=1)[:, : before.shape[1]]
            assert (np.abs(after - before) <= 1.05 * step).all()  # +8 steps are cut to +7, scales are rounded


def test_bytes_are_those_of_the_layout():
    layout = ExpertLayout(256, 128, "bf16")
    memory = SlotMemory(layout, 5, CPU)
    assert memory.num_bytes == 5 * layout.expert_bytes == 5 * 3 * 256 * 128 * 2
