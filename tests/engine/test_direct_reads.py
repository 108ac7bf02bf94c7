"""Reads past the page cache: the same numbers, of whatever part, cached or not, and the choice between the two ways."""

from __future__ import annotations

import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moelab.engine import direct_reads
from moelab.engine.checkpoint import Checkpoint
from moelab.engine.disk_queue import open_queue
from moelab.engine.mapped_file import SMALL_STREAM
from moelab.kernels.pages import map_pages
from moelab.kernels.pool import AHEAD

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and the page cache of Linux")
ROWS, COLUMNS = 700, 1001  # of bf16: rows begin at every remainder of a sector


@pytest.fixture
def opened(tmp_path):
    """(checkpoint of a matrix and a small tensor behind it, what they hold, its file); nothing of it is cached."""
    torch.manual_seed(5)
    tensors = {"matrix": torch.randn(ROWS, COLUMNS).bfloat16(), "small": torch.arange(4).bfloat16()}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    (tmp_path / "config.json").write_text("{}")
    drop(path)
    checkpoint = Checkpoint.open(tmp_path)
    yield checkpoint, tensors, path
    checkpoint.close()


def drop(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def has_direct(path):
    descriptor = direct_reads.open_direct(path)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def test_any_part_is_what_the_file_holds(opened):
    checkpoint, tensors, path = opened
    rng = np.random.default_rng(1)
    view = checkpoint.read("matrix")
    for _ in range(60):
        first, stop = sorted(rng.choice(ROWS + 1, 2, replace=False))
        drop(path)
        got = checkpoint.fetch(view[first:stop], int(rng.integers(2)))
        assert torch.equal(got, tensors["matrix"][first:stop])
    assert torch.equal(checkpoint.fetch(view[-1:]), tensors["matrix"][-1:])  # the file ends within a sector
    assert (checkpoint.reads.num_bytes > view.nbytes) == has_direct(path)


def test_what_is_cached_is_not_read_from_the_disk(opened):
    checkpoint, tensors, path = opened
    path.read_bytes()
    assert torch.equal(checkpoint.fetch(checkpoint.read("matrix")), tensors["matrix"])
    assert checkpoint.reads.num_bytes == 0


def test_a_slow_disk_is_read_through_the_page_cache(opened, monkeypatch):
    checkpoint, tensors, _ = opened
    monkeypatch.setattr(direct_reads, "SURE_BYTES", 1)  # the first read decides
    monkeypatch.setattr(direct_reads, "SLOW_BYTES_PER_S", 1e15)
    for first in range(0, ROWS, 100):
        part = checkpoint.read("matrix")[first : first + 100]
        assert torch.equal(checkpoint.fetch(part), tensors["matrix"][first : first + 100])
    assert checkpoint.reads.num_bytes < 300 * 2 * COLUMNS  # no second one


def test_a_file_system_that_refuses_is_read_otherwise(opened, monkeypatch):
    checkpoint, tensors, _ = opened

    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(direct_reads.DirectReads, "read", refuse)
    for _ in range(2):
        assert torch.equal(checkpoint.fetch(checkpoint.read("matrix")), tensors["matrix"])


def test_a_small_tensor_comes_along_with_the_one_before_it(opened):
    checkpoint, tensors, _ = opened
    large = checkpoint.fetch(checkpoint.read("matrix"))
    before = checkpoint.reads.num_bytes
    small = checkpoint.fetch(checkpoint.read("small"), SMALL_STREAM)
    assert torch.equal(small, tensors["small"])
    assert checkpoint.reads.num_bytes == before
    assert small.data_ptr() == large.data_ptr() + large.nbytes
    assert torch.equal(large, tensors["matrix"])


def test_views_that_are_not_contiguous(opened):
    checkpoint, tensors, _ = opened
    view, held = checkpoint.read("matrix"), tensors["matrix"]
    turned = checkpoint.fetch(view[10:300].t())
    assert turned.data_ptr() != view[10:300].data_ptr()
    assert torch.equal(turned, held[10:300].t())
    column = view[:, 3:4]  # its numbers lie far apart: not worth reading what is between
    assert checkpoint.fetch(column) is column


def test_threads_do_not_share_buffers(opened):
    checkpoint, tensors, _ = opened
    view = checkpoint.read("matrix")

    def fetch(number):
        first = number * 7 % (ROWS - 50)
        got = checkpoint.fetch(view[first : first + 50])
        return all(torch.equal(got, tensors["matrix"][first : first + 50]) for _ in range(20))

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(fetch, range(200)))


def test_the_rate_counts_reads_at_one_time_once(tmp_path, monkeypatch):
    """Two reads of one second that overlap by half are 1.5 s of the disk."""
    reads, clock = direct_reads.DirectReads(), iter([0.0, 1.5])
    monkeypatch.setattr(direct_reads.time, "perf_counter", lambda: next(clock))
    inner: list[bool] = []

    def preadv(descriptor, buffers, offset):
        if not inner:
            inner.append(True)
            assert reads.read(descriptor, np.zeros(4096, np.uint8), 0) == 4096
        return 4096

    monkeypatch.setattr(direct_reads.os, "preadv", preadv)
    assert reads.read(0, np.zeros(8192, np.uint8), 0) == 8192
    assert reads.num_bytes == 3 * 4096
    assert reads._busy_s == 1.5


@pytest.mark.parametrize("queue", [True, False])
def test_what_was_read_ahead_is_what_the_file_holds(opened, monkeypatch, queue):
    """Random parts, fetched in the order of asking, some never; more of them than there are buffers."""
    if not queue:
        monkeypatch.setattr(direct_reads, "open_queue", lambda depth: None)
    checkpoint, tensors, path = opened
    rng = np.random.default_rng(2)
    view, asked = checkpoint.read("matrix"), []
    for number in range(150):
        first, stop = sorted(int(row) for row in rng.choice(ROWS + 1, 2, replace=False))
        drop(path)
        checkpoint.ahead(view[first:stop], number % 2)
        asked.append((first, stop, number % 2))
        while len(asked) > 9 or (asked and rng.random() < 0.5):
            first, stop, stream = asked.pop(0)
            if rng.random() < 0.8:
                assert torch.equal(checkpoint.fetch(view[first:stop], stream), tensors["matrix"][first:stop])
    assert (checkpoint.reads.num_bytes > view.nbytes) == has_direct(path)


def test_tasks_drawn_ahead_find_their_buffers(opened):
    """No part is read twice where the parts come in the order of asking, as `Tasks` draws them."""
    checkpoint, tensors, _ = opened
    view, reads = checkpoint.read("matrix"), checkpoint.reads
    parts = [(first, first + 20) for first in range(0, ROWS, 20)]
    for number in range(len(parts) + AHEAD):
        if number < len(parts):
            checkpoint.ahead(view[slice(*parts[number])])
        if number >= AHEAD:
            first, stop = parts[number - AHEAD]
            assert torch.equal(checkpoint.fetch(view[first:stop]), tensors["matrix"][first:stop])
    assert reads.num_bytes <= len(parts) * (20 * 2 * COLUMNS + 4 * 4096)


def test_memory_of_buffers_goes_round(opened, monkeypatch):
    """What was freed longest ago is written next, until RING_BYTES are there no memory twice, and then no more."""
    monkeypatch.setattr(direct_reads, "RING_BYTES", 16 << 20)
    reads = direct_reads.DirectReads()
    places = [reads.use(0, None, 2 << 20).memory.ctypes.data for _ in range(40)]
    assert len(set(places)) == 8
    assert places[8:16] == places[16:24]
    assert len({reads.use(1, None, 1000).memory.ctypes.data for _ in range(40)}) <= 8  # cut from one huge page
    assert reads._ring_bytes <= 20 << 20


def test_small_tensors_read_in_one_go_are_kept(opened, tmp_path):
    checkpoint, tensors, path = opened
    checkpoint.keep(["small", "matrix"])
    before = checkpoint.reads.num_bytes
    assert (before > 0) == has_direct(path)
    for _ in range(3):
        assert torch.equal(checkpoint.fetch(checkpoint.read("small")), tensors["small"])
        assert torch.equal(checkpoint.fetch(checkpoint.read("matrix")[5:9]), tensors["matrix"][5:9])
    if has_direct(path):
        assert checkpoint.reads.num_bytes == before


def test_more_parts_than_the_queue_takes_and_parts_behind_the_end(opened):
    checkpoint, _, path = opened
    descriptor = direct_reads.open_direct(path)
    if descriptor is None:
        return
    data, rng = path.read_bytes(), np.random.default_rng(6)
    starts = [int(start) for start in rng.integers(0, len(data) - 3000, 2 * direct_reads.MOST_WANTED)]
    buffers = checkpoint.reads.read_apart(descriptor, [(start, start + 3000) for start in starts])
    for start, buffer in zip(starts, buffers, strict=True):
        assert buffer.part(start, start + 3000).tobytes() == data[start : start + 3000]
    (behind,) = checkpoint.reads.read_apart(descriptor, [(len(data) + 9000, len(data) + 9010)])
    assert behind.stop == behind.first  # nothing is there
    os.close(descriptor)
    (closed,) = checkpoint.reads.read_apart(descriptor, [(0, 10)])
    assert closed.stop == closed.first


def test_what_is_on_its_way_is_counted_until_it_came(opened):
    """Of this thread alone; `wait` says whether there was something to wait for, and loses nothing of it."""
    checkpoint, tensors, path = opened
    if not has_direct(path):
        return
    reads, view = checkpoint.reads, checkpoint.read("matrix")
    assert (reads.on_their_way(), reads.begun(), reads.wait(0)) == (0, 0, False)
    marks = []
    for first in (0, 300, 600):
        checkpoint.ahead(view[first : first + 100])
        marks.append(reads.begun())
    assert marks == [1, 2, 3]
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(reads.on_their_way).result() == 0
    for mark in reversed(marks):  # the first wait waits for all that began before
        reads.wait(mark)
        assert not reads.wait(mark)
    assert reads.on_their_way() == 0
    before = reads.num_bytes
    for first in (600, 0, 300):
        assert torch.equal(checkpoint.fetch(view[first : first + 100]), tensors["matrix"][first : first + 100])
    assert reads.num_bytes > before  # what came is counted when it is fetched, and not read again
    assert reads.begun() == 3


def test_the_system_says_what_is_cached_one_way_or_the_other(opened):
    _, _, path = opened
    size = path.stat().st_size
    for cached in (True, False, True):
        path.read_bytes() if cached else drop(path)
        with path.open("rb") as file:
            mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            told = direct_reads.is_cached(file.fileno(), mapped.ctypes.data, 0, size)
            assert told == direct_reads.is_resident(mapped.ctypes.data, size) == cached


def test_a_file_that_became_shorter_is_an_error(opened):
    checkpoint, _, path = opened
    view = checkpoint.read("matrix")
    os.truncate(path, 4096)
    checkpoint.ahead(view[-10:])
    with pytest.raises(OSError, match="it changed; load again"):
        checkpoint.fetch(view[-10:])


def test_a_queue_takes_as_many_reads_as_it_is_deep(opened):
    _, _, path = opened
    queue = open_queue(2)
    if queue is None or not has_direct(path):
        return  # the tests above have read without
    memory = map_pages(4 * 4096).memory
    descriptor = direct_reads.open_direct(path)
    numbers = [queue.start(descriptor, memory[start : start + 4096], start) for start in (0, 4096, 8192)]
    assert numbers[2] is None
    assert [queue.wait(number) for number in reversed(numbers[:2])] == [4096, 4096]
    assert memory[:8192].tobytes() == path.read_bytes()[:8192]
    os.close(descriptor)
    assert queue.start(descriptor, memory[:4096], 0) is None
    queue.close()
    queue.close()
    assert queue.start(0, memory[:4096], 0) is None
