"""Shelf: many placements over one memory give the same bits; uploader: copies arrive whole and in order."""

import os

import numpy as np
import pytest

from moelab.calibration.shelf import Shelf, pieces_on, touch
from moelab.calibration.uploader import Uploader
from moelab.domain.plan_copies import whole_on
from moelab.kernels import ExpertLayout, Pool, RoutedExperts
from moelab.kernels.native import library
from moelab.kernels.pieces import num_units

LAYOUT = ExpertLayout(96, 128, "int4_g32")
E = 6
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_native = pytest.mark.skipif(library()[0] is None, reason="native kernels are not built")
needs_two_cores = pytest.mark.skipif(cores < 2, reason="one core only")


@needs_native
@needs_two_cores
@pytest.mark.parametrize("seed", [0, 1])
def test_placements_share_memory_and_bits(seed):
    rng = np.random.default_rng(seed)
    with Pool(2, virtual_nodes=2) as pool:
        shelf = Shelf(LAYOUT, E, pool)
        forms = [
            whole_on(rng.integers(0, 2, E), num_units(LAYOUT)),
            pieces_on(E, num_units(LAYOUT), [0, 1]),
            pieces_on(E, num_units(LAYOUT), [1, 0, 0]),
            whole_on(rng.integers(0, 2, E), num_units(LAYOUT)),
        ]
        x = rng.standard_normal((3, LAYOUT.hidden_size)).astype(np.float32)
        ids = np.stack([rng.permutation(E)[:3] for _ in range(3)])
        gates = rng.random((3, 3)).astype(np.float32)
        outputs, sizes = [], []
        for copies in (*forms, *forms):
            placed = shelf.placement(copies)
            layer = RoutedExperts(LAYOUT, placed.addresses, "generic", "int8", pool, owner=placed, placement=placed)
            outputs.append(layer.forward(x, ids, gates))
            sizes.append(shelf.num_bytes)
        for other in outputs[1:]:
            assert np.array_equal(outputs[0], other)
        assert len(set(sizes[3:])) == 1  # the second time everything is there already
        assert sizes[0] == E * LAYOUT.expert_bytes
        assert sizes[3] <= 4 * E * LAYOUT.expert_bytes


def test_touch_reads_every_page_of_every_copy(monkeypatch):
    """A copy that is not there any more would be noticed: its memory is asked for."""
    with Pool(1) as pool:
        placed = Shelf(LAYOUT, 3, pool).placement(pieces_on(3, num_units(LAYOUT), [0, 0]))
        asked = []

        class Block:
            def __init__(self, memory):
                self.memory = self
                self.real = memory

            def __getitem__(self, pages):
                asked.append((pages.start, pages.stop, pages.step, len(self.real)))
                return self.real[pages]

        blocks = {copy: Block(block.memory) for copy, block in placed.memory_of_copy.items()}
        monkeypatch.setattr(placed, "memory_of_copy", blocks)
        touch(placed)
    assert len(asked) == 6
    assert all((start, stop) == (None, None) and step <= 4096 < size for start, stop, step, size in asked)


def test_own_source():
    block = np.random.default_rng(0).integers(0, 256, LAYOUT.expert_bytes).astype(np.uint8)
    with Pool(1) as pool:
        placed = Shelf(LAYOUT, 2, pool, source=lambda expert: block + np.uint8(expert)).placement(
            whole_on(np.zeros(2, int), num_units(LAYOUT))
        )
        assert np.array_equal(placed[0], block)
        assert np.array_equal(placed[1], block + np.uint8(1))


def test_uploader():
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, 256, 1000 + n).astype(np.uint8) for n in range(6)]
    slots = [np.zeros(2000, np.uint8) for _ in range(8)]
    with Uploader(slots, None) as uploader:
        assert uploader.put(sources[:4]) == 4
        assert uploader.put(sources[4:]) == 6
        uploader.wait(2)
        assert uploader.num_done >= 2
        uploader.wait()
        assert uploader.idle
        assert uploader.num_bytes == [len(each) for each in sources]
        assert (np.diff(uploader.ends) >= 0).all()
        assert (np.array(uploader.begins) <= uploader.ends).all()
        assert (np.array(uploader.begins[1:]) >= uploader.ends[:-1]).all()
        first, last = uploader.begins[4], uploader.ends[-1]
        assert uploader.start_s(4, first - 0.25, last + 0.5) == pytest.approx(0.75)
    for source, slot in zip(sources, slots, strict=False):
        assert np.array_equal(slot[: len(source)], source)
        assert not slot[len(source) :].any()
