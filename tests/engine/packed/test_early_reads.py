"""EarlyReads: cold chunks arrive past the page cache in their places; what cannot be read so is left to the caller."""

import mmap
import os
from io import FileIO

import numpy as np
import pytest

from moelab.engine.direct_reads import ALIGNMENT, is_resident, open_direct
from moelab.engine.packed.early_reads import EarlyReads
from moelab.kernels.pages import map_pages

SIZE = 6 * (2 << 20) + 1234


def in_page_cache(path):
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    return is_resident(mapped.ctypes.data, len(mapped))


@pytest.fixture
def written(tmp_path):
    """(a file whose pages are not cached, its bytes)."""
    data = np.random.default_rng(3).integers(0, 256, SIZE).astype(np.uint8)
    path = tmp_path / "experts.bin"
    data.tofile(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    descriptor = open_direct(path)
    if descriptor is None:
        pytest.skip("no O_DIRECT on this file system")
    os.close(descriptor)
    return path, data


def test_cold_chunks_arrive_in_place(written):
    path, data = written
    early, memory = EarlyReads(), map_pages(SIZE).memory
    with FileIO(path) as file:
        assert not in_page_cache(path)
        starts = range(0, 6 * (2 << 20), 2 << 20)
        for start in starts:
            early.start(file, memory[start : start + (2 << 20)], start)
        got = [early.finish(file, start) for start in starts]
        assert got == [2 << 20] * 6
        assert (memory[: len(got) << 21] == data[: len(got) << 21]).all()
        assert early.finish(file, 0) == 0  # each once
        assert not in_page_cache(path), "past the page cache"
    early.close()
    early.close()


def test_odd_places_and_cached_bytes_are_left(written):
    path, data = written
    early, memory = EarlyReads(), map_pages(SIZE).memory
    with FileIO(path) as file:
        for into, offset in (
            (memory[:ALIGNMENT], 512), (memory[64 : 64 + ALIGNMENT], 0), (memory[:1234], 0),
        ):  # fmt: skip
            early.start(file, into, offset)
            assert early.finish(file, offset) == 0
        file.read()
        assert in_page_cache(path)
        early.start(file, memory[:ALIGNMENT], 0)
        assert early.finish(file, 0) == 0
    early.close()
    assert not memory.any()
    assert data.any()


def test_a_file_that_ends_early_says_so(written):
    path, _ = written
    early, memory = EarlyReads(), map_pages(SIZE + (2 << 20)).memory
    with FileIO(path) as file:
        begin = 6 * (2 << 20)
        early.start(file, memory[begin : begin + 8192], begin)
        assert early.finish(file, begin) in (0, 1234)
    early.close()
