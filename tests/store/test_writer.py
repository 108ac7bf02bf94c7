"""TraceWriter: what it refuses, one writer at a time, resuming, and a stop at every single disk call."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from moelab.domain.trace import TokenTable
from moelab.store import TraceStoreError, TraceWriter, durable, open_trace, verify
from tests.store.recorded_rows import Rows, append, assert_equal, header, in_memory

ROWS = Rows(header(), seed=5)


def record(folder, stop, segment_tokens=64, batch=20):
    with TraceWriter(folder, ROWS.header, segment_tokens) as writer:
        for start in range(writer.num_tokens, stop, batch):
            append(writer, ROWS.take(start, min(stop, start + batch)))


def test_segments_never_split_a_batch(tmp_path):
    record(tmp_path / "t", 150)
    assert [s.num_tokens for s in open_trace(tmp_path / "t")._folder.plot.segments] == [60, 60, 30]


def test_a_batch_longer_than_a_segment_fills_whole_segments(tmp_path):
    record(tmp_path / "t", 200, batch=200)
    assert [s.num_tokens for s in open_trace(tmp_path / "t")._folder.plot.segments] == [64, 64, 64, 8]
    assert not list((tmp_path / "t").glob("wal-*"))
    assert not (tmp_path / "t" / "writer.lock").exists()


def test_resume_a_closed_recording(tmp_path):
    record(tmp_path / "t", 70)
    record(tmp_path / "t", 150)
    assert_equal(open_trace(tmp_path / "t").load(), ROWS.take(0, 150))


def test_resume_with_shorter_segments_than_the_log_holds(tmp_path):
    writer = TraceWriter(tmp_path / "t", ROWS.header, 100)
    append(writer, ROWS.take(0, 90))
    abandon(writer)
    record(tmp_path / "t", 130, segment_tokens=16)
    assert_equal(open_trace(tmp_path / "t").load(), ROWS.take(0, 130))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, g, t: (e.astype(np.int64), g, t), "experts is int64"),
        (lambda e, g, t: (e[:, :1], g, t), "expected uint16"),
        (lambda e, g, t: (e + np.uint16(40), g, t), "ids below"),
        (lambda e, g, t: (e, g * np.float16(np.nan), t), "expected a finite"),
        (lambda e, g, t: (e, g, TokenTable.build(step=[0] * 10, request=0, position=0, phase=0)), "never decrease"),
    ],
)
def test_a_bad_batch_is_refused_and_nothing_of_it_kept(tmp_path, change, message):
    with TraceWriter(tmp_path / "t", ROWS.header) as writer:
        append(writer, ROWS.take(0, 30))
        good = ROWS.take(30, 40)
        with pytest.raises(ValueError, match=message):
            writer.append(*change(good.experts, good.gate_weights, good.tokens), **good.extras)
        append(writer, good)
    assert_equal(open_trace(tmp_path / "t").load(), ROWS.take(0, 40))


def test_extras_are_those_of_the_first_batch(tmp_path):
    with TraceWriter(tmp_path / "t", ROWS.header) as writer:
        append(writer, ROWS.take(0, 3))
        batch = ROWS.take(3, 5)
        with pytest.raises(ValueError, match="as in the first batch"):
            writer.append(batch.experts, batch.gate_weights, batch.tokens)
        with pytest.raises(ValueError, match="expected integers or floats"):
            writer.append(batch.experts, batch.gate_weights, batch.tokens, residency=np.array(["a", "b"]))
    with TraceWriter(tmp_path / "u", ROWS.header) as writer, pytest.raises(ValueError, match="clash"):
        writer.append(batch.experts, batch.gate_weights, batch.tokens, step=np.zeros(2))


def test_a_folder_of_another_header_is_refused(tmp_path):
    record(tmp_path / "t", 10)
    with pytest.raises(TraceStoreError, match=r"differs in model, licence \(toy\)"):
        TraceWriter(tmp_path / "t", header(model="other", licence="MIT"))
    assert_equal(open_trace(tmp_path / "t").load(), ROWS.take(0, 10))


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TraceStoreError, match=r"a folder with notes\.txt"):
        TraceWriter(tmp_path, ROWS.header)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(TraceStoreError, match="expected a folder, got a file"):
        TraceWriter(tmp_path / "notes.txt", ROWS.header)


def test_one_writer_at_a_time(tmp_path):
    with TraceWriter(tmp_path / "t", ROWS.header) as writer:
        append(writer, ROWS.take(0, 10))
        with pytest.raises(
            TraceStoreError, match=rf"writer\.lock: expected no other writer, got process {os.getpid()}"
        ):
            TraceWriter(tmp_path / "t", ROWS.header)
        append(writer, ROWS.take(10, 20))
    assert_equal(open_trace(tmp_path / "t").load(), ROWS.take(0, 20))


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    code = (
        "import os, sys; from moelab.store import TraceWriter; "
        "from tests.store.recorded_rows import Rows, append, header;"
        "w = TraceWriter(sys.argv[1], header()); append(w, Rows(header(), 5).take(0, 10)); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "t"], cwd=Path(__file__).parents[2], check=False)
    assert (tmp_path / "t" / "writer.lock").exists()
    with TraceWriter(tmp_path / "t", ROWS.header) as writer:
        assert writer.recovery.num_log_tokens == 10
        append(writer, ROWS.take(10, 20))
    assert_equal(open_trace(tmp_path / "t").load(), ROWS.take(0, 20))


def test_a_closed_writer_says_so(tmp_path):
    writer = TraceWriter(tmp_path / "t", ROWS.header)
    writer.close()
    writer.close()
    with pytest.raises(TraceStoreError, match="expected an open writer, got a closed one"):
        append(writer, ROWS.take(0, 1))


def test_a_torn_log_is_recovered_and_reported(tmp_path):
    writer = TraceWriter(tmp_path / "t", ROWS.header, 64)
    append(writer, ROWS.take(0, 20))
    append(writer, ROWS.take(20, 40))
    abandon(writer)
    log = tmp_path / "t" / "wal-000000.log"
    log.write_bytes(log.read_bytes()[:-7])
    stored = open_trace(tmp_path / "t")
    assert_equal(stored.load(), ROWS.take(0, 20))
    assert stored.torn_bytes > 0
    assert "torn bytes ignored" in repr(stored)
    assert "torn bytes, never committed" in str(verify(tmp_path / "t"))
    with TraceWriter(tmp_path / "t", ROWS.header, 64) as writer:
        assert writer.recovery.torn_bytes == stored.torn_bytes
        append(writer, ROWS.take(20, 40))
    assert_equal(open_trace(tmp_path / "t").load(), ROWS.take(0, 40))


class Stopped(BaseException):
    """Stands for the death of the process."""


def abandon(writer):
    """What the death of the process does: the system closes its files, nothing else happens."""
    os.close(writer._lock._descriptor)
    writer._manifest.close()
    if writer._log is not None:
        writer._log.close()


def stop_at(monkeypatch, number):
    """The ``number``-th change of the disk happens half (a write) or not at all; returns the counter."""
    calls = [0]

    def wrap(name):
        real = getattr(durable, name)

        def wrapped(*arguments):
            calls[0] += 1
            if calls[0] == number:
                if name == "append":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Stopped
            return real(*arguments)

        monkeypatch.setattr(durable, name, wrapped)

    for name in ("append", "sync", "sync_folder", "rename", "remove", "truncate"):
        wrap(name)
    return calls


@pytest.fixture
def ram_folder():
    with in_memory() as folder:
        yield Path(folder)


def test_a_stop_at_every_disk_call(ram_folder, monkeypatch):
    """Batches of 20, 30 and 100 rows over segments of 64, commits between; then resume and finish."""
    sizes, total = [20, 30, 20, 100, 7, 60], 237
    number = 0
    while True:
        number += 1
        folder = ram_folder / str(number)
        committed = intended = 0
        writer = None
        with monkeypatch.context() as patch:
            calls = stop_at(patch, number)
            try:
                writer = TraceWriter(folder, ROWS.header, 64)
                for size in sizes:
                    intended = committed + size
                    append(writer, ROWS.take(committed, intended))
                    committed = intended
                    writer.commit()
                writer.close()
            except Stopped:
                if writer is not None and not writer._closed:
                    abandon(writer)
        if calls[0] < number:
            break
        try:
            stored = open_trace(folder)
        except TraceStoreError:
            assert not committed, f"stop {number} lost {committed} tokens"
            assert not list(folder.glob("*.parquet"))
        else:
            assert stored.num_tokens in (committed, intended) or intended - committed > 64
            assert committed <= stored.num_tokens <= intended
            assert_equal(stored.load(), ROWS.take(0, stored.num_tokens)) if stored.num_tokens else None
            assert verify(folder).ok
        record(folder, total)
        assert_equal(open_trace(folder).load(), ROWS.take(0, total))
        assert verify(folder).ok
        assert not [p for p in folder.iterdir() if p.suffix in (".tmp", ".log", ".lock")]
    print(f"stopped at each of {number - 1} disk calls")
    assert number > 60


def test_reading_beside_a_live_writer(ram_folder):
    """Every look sees a prefix of the recording, however often segments replace logs meanwhile."""
    writer = TraceWriter(ram_folder / "t", ROWS.header, 32)
    append(writer, ROWS.take(0, 40))
    stop = threading.Event()

    def go_on():
        with writer:
            while not stop.wait(0.01) and writer.num_tokens < 1000:
                append(writer, ROWS.take(writer.num_tokens, writer.num_tokens + 13))

    thread = threading.Thread(target=go_on)
    thread.start()
    seen = []
    try:
        while thread.is_alive():
            stored = open_trace(ram_folder / "t")
            assert_equal(stored.load(), ROWS.take(0, stored.num_tokens))
            assert verify(ram_folder / "t").ok
            seen.append(stored.num_tokens)
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
    assert open_trace(ram_folder / "t").num_tokens >= seen[-1]
