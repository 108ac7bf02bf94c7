"""Generated weights: every expert has its own physical pages and different bytes, and sane values."""

import numpy as np
import psutil
import pytest

from moelab.kernels import ExpertArena, ExpertLayout
from moelab.kernels.generated import bf16_bits, fill_expert
from moelab.kernels.reference import unpack_expert


def test_every_expert_has_its_own_pages_and_bytes():
    layout = ExpertLayout(2048, 1024, "int4_g32")
    num_experts = 24
    fill_expert(np.zeros(layout.expert_bytes, np.uint8), layout, seed=99)  # compile before the sizes are taken
    process = psutil.Process()
    before = process.memory_info().rss
    with ExpertArena(layout, num_experts) as arena:
        for expert in range(num_experts):
            fill_expert(arena[expert], layout, seed=expert)
        grown = process.memory_info().rss - before
        assert grown >= 0.98 * num_experts * layout.expert_bytes, "shared or untouched pages would be cheaper to read"
        distinct = {arena[expert].tobytes() for expert in range(num_experts)}
        assert len(distinct) == num_experts
        # Not only the whole: no 4 KiB page occurs twice.
        pages = np.concatenate([arena[e][: layout.expert_bytes // 4096 * 4096].reshape(-1, 4096) for e in range(4)])
        assert len(np.unique(pages, axis=0)) == len(pages)


def test_same_seed_same_bytes():
    layout = ExpertLayout(128, 64, "int4_g32")
    blocks = [np.zeros(layout.expert_bytes, np.uint8) for _ in range(3)]
    for block, seed in zip(blocks, (5, 5, 6), strict=True):
        fill_expert(block, layout, seed)
    np.testing.assert_array_equal(blocks[0], blocks[1])
    assert (blocks[0] != blocks[2]).mean() > 0.5


@pytest.mark.parametrize("weight_format", ["float32", "bf16", "int4_g32", "int8_g32"])
def test_weights_have_about_the_variance_of_a_trained_layer(weight_format):
    layout = ExpertLayout(512, 256, weight_format)
    block = np.zeros(layout.expert_bytes, np.uint8)
    fill_expert(block, layout, seed=1)
    gate, up, down = unpack_expert(block, layout)
    for matrix, columns in ((gate, 512), (up, 512), (down, 256)):
        variance = matrix.var() * columns
        assert 0.2 < variance < 5, variance
        assert abs(matrix.mean()) * np.sqrt(columns) < 0.2


def test_bf16_bits_are_a_power_of_two():
    assert bf16_bits(0.75) == 0x3F00  # 0.5
    assert bf16_bits(1.0) == 0x3F80
