"""200 recordings killed with SIGKILL at random moments: nothing committed is lost, nothing wrong is read."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from moelab.store import TraceStoreError, open_trace, verify
from tests.store.recorded_rows import Rows, assert_equal, header, in_memory

NUM_KILLS, KILLS_OF_A_FOLDER = 200, 5
ROWS = Rows(header(), seed=7)


@pytest.fixture
def ram_folder():
    with in_memory() as folder:
        yield Path(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork are POSIX; every disk call is stopped elsewhere")
def test_nothing_committed_is_lost(ram_folder):
    seed = 20261122
    print(f"seed {seed}")
    draw = random.Random(seed)
    recorder = subprocess.Popen(
        [sys.executable, "-m", "tests.store.killed_recorder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    num_torn = num_in_log = num_before_first = most = 0
    with recorder:
        for number in range(NUM_KILLS):
            folder = ram_folder / str(number // KILLS_OF_A_FOLDER)
            before = open_trace(folder).num_tokens if (folder / "manifest.jsonl").exists() else 0
            moment = [draw.choice([0, draw.randint(1, 40), draw.randint(1, 40)]), draw.uniform(0.0, 0.02)]
            recorder.stdin.write(json.dumps([str(folder), draw.randrange(2**32), *moment]) + "\n")
            recorder.stdin.flush()
            told = json.loads(recorder.stdout.readline())
            assert told["killed"], told
            committed = max(before, told["committed"])
            if not (folder / "manifest.jsonl").exists():
                assert not committed, f"kill {number}: {committed} committed tokens and no manifest"
                num_before_first += 1
                if folder.exists():
                    with pytest.raises(TraceStoreError):
                        open_trace(folder)
                continue
            stored = open_trace(folder)
            intended = told["intended"] if told["reported"] else before
            assert committed <= stored.num_tokens <= max(intended, before), (
                f"kill {number}: {told}, {stored.num_tokens}"
            )
            if stored.num_tokens:
                assert_equal(stored.load(), ROWS.take(0, stored.num_tokens))
            if number % KILLS_OF_A_FOLDER == KILLS_OF_A_FOLDER - 1:
                assert verify(folder).ok, f"kill {number}\n{verify(folder)}"
            num_torn += stored.torn_bytes > 0
            num_in_log += not stored.sealed
            most = max(most, stored.num_tokens)
        recorder.stdin.close()
    print(f"{NUM_KILLS} kills: {num_in_log} with tokens in the log, {num_torn} with a torn write, "
          f"{num_before_first} before the first commit; longest recording {most} tokens")  # fmt: skip
    assert num_in_log > NUM_KILLS // 4
