"""bench simulator at a small size: a row for every policy and every peer, by turns on equal streams. No times."""

import numpy as np
import pytest

from moelab.bench import simulator
from moelab.policies import POLICIES


def test_rows_have_the_promised_keys(monkeypatch):
    for name, value in {"NUM_LAYERS": 3, "NUM_EXPERTS": 16, "TOP_K": 2, "SLOTS_PER_LAYER": 4}.items():
        monkeypatch.setattr(simulator, name, value)
    monkeypatch.setattr(simulator, "NUM_OBJECTS", 64)
    monkeypatch.setattr(simulator, "NUM_SLOTS", 20)
    rows = simulator.run(seconds=0.01).rows
    names = [row["name"] for row in rows]
    assert names[: len(POLICIES)] == [f"{name}, set requests" for name in POLICIES]
    others = [
        "miss_ratio_curve, all capacities",
        "prefetch_eam, set requests, 20 tokens a request",
        "min_cost (LP oracle), set requests, 20 steps",
    ]
    assert names[len(POLICIES) :] == others + [
        f"{name}, single requests{how}" for name in simulator.PEERS for how in simulator.HASH_POWERS
    ]
    for row in rows:
        assert set(row) == {"name", "million_accesses_per_s", "ratio_to_libcachesim"}
        assert row["million_accesses_per_s"] > 0


def test_the_peer_reads_the_stream_that_we_replay(tmp_path):
    lcs = pytest.importorskip("libcachesim", reason="libcachesim is not installed")
    stream = np.random.default_rng(0).integers(0, 50, 2000)
    path = tmp_path / "stream.bin"
    simulator._write_stream(path, stream)
    missed, _ = simulator._peer("LRU", path, 16)()
    reader = lcs.TraceReader(trace=str(path), trace_type=lcs.TraceType.ORACLE_GENERAL_TRACE)
    assert reader.get_num_of_req() == 2000
    assert missed == pytest.approx(len(set(stream.tolist())) / 2000)  # every object fits: only first uses miss
