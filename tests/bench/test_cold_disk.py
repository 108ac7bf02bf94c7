"""What the disk gives: every byte is read, into as many buffers as are asked for, whatever the number of workers."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from moelab.bench import cold_disk, warm_memory
from moelab.engine.direct_reads import RING_BYTES, RING_PART
from moelab.kernels import Pool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the page cache of Linux")


@pytest.fixture(autouse=True)
def no_wait_for_the_balloon(monkeypatch):
    monkeypatch.setattr(warm_memory, "PERIOD_S", 0.0)


@pytest.fixture
def reads(monkeypatch):
    """(bytes, address) of each read."""
    found, preadv = [], os.preadv

    def noted(descriptor, buffers, offset):
        got = preadv(descriptor, buffers, offset)
        found.append((got, np.frombuffer(buffers[0], np.uint8).ctypes.data))
        return got

    monkeypatch.setattr(cold_disk.os, "preadv", noted)
    return found


@pytest.fixture
def files(tmp_path):
    """Seven blocks, the last of the first file a part of one."""
    paths, rng = [tmp_path / "a", tmp_path / "b"], np.random.default_rng(7)
    for path, num_bytes in zip(paths, (5 * cold_disk.BLOCK_BYTES + 100, 4096), strict=True):
        rng.integers(0, 256, num_bytes).astype(np.uint8).tofile(path)
    return paths


@pytest.mark.parametrize("num_buffers", [1, 3, 9])
@pytest.mark.parametrize("workers", [None, 1, 2])
def test_every_byte_is_read_into_the_buffers_in_turn(files, reads, num_buffers, workers):
    if workers is None:
        assert cold_disk.read_cold(files, None, num_buffers=num_buffers) > 0
    else:
        with Pool(workers) as pool:
            assert cold_disk.read_cold(files, pool, num_buffers=num_buffers) > 0
    assert sum(got for got, _ in reads) == sum(path.stat().st_size for path in files)
    addresses = [address for _, address in reads]
    if workers == 2:
        assert len(set(addresses)) <= 2 * num_buffers
    else:
        assert len(set(addresses)) == min(num_buffers, 7)
        assert addresses == [addresses[number % num_buffers] for number in range(7)]


@pytest.mark.parametrize("workers", [1, 2, 100])
@pytest.mark.parametrize("total", [10_000, 10**9, 10**12])
def test_memory_has_as_many_buffers_as_a_load(files, monkeypatch, workers, total):
    asked = []
    monkeypatch.setattr(cold_disk, "can_read_directly", lambda path: True)
    monkeypatch.setattr(cold_disk, "read_cold", lambda *given: asked.append(given) or 1.0)
    sizes = SimpleNamespace(stat=lambda: SimpleNamespace(st_size=total))
    assert cold_disk.rate_to_memory([sizes], SimpleNamespace(num_workers=workers)) == 1.0
    ((_, _, flags, num_buffers),) = asked
    assert flags == os.O_DIRECT
    ring = min(RING_BYTES, total // RING_PART)
    assert num_buffers >= 2
    assert num_buffers == 2 or num_buffers * workers * cold_disk.BLOCK_BYTES <= ring
    assert (num_buffers + 1) * workers * cold_disk.BLOCK_BYTES > ring


def test_without_direct_reads_nothing_is_said_of_memory(files, monkeypatch):
    monkeypatch.setattr(cold_disk, "can_read_directly", lambda path: False)
    with Pool(1) as pool:
        assert np.isnan(cold_disk.rate_to_memory(files, pool))
        assert cold_disk.Disk(files, pool).bytes_per_s() > 0
