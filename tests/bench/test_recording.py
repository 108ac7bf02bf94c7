"""The cost of recording counts the rare dear steps by how often they occur, and nothing that the machine did."""

from __future__ import annotations

import json

import numpy as np
import pytest

import moelab
from moelab.bench import recording
from moelab.bench.recording import mean_cost, recording_cost
from moelab.cli import main
from moelab.domain.model import ModelSpec
from moelab.engine.recorder import FLUSH_TOKENS, PENDING_TOKENS
from moelab.kernels import choose_isa


def test_dear_steps_count_and_interruptions_do_not():
    """90 steps of 1 us, one of them interrupted, and 10 copies of 5 and 15 us: (90 x 1 + 100) / 100 us."""
    difference = np.concatenate([np.full(89, 1e-6), [3e-3], np.tile([5e-6, 15e-6], 5)])
    dear = np.arange(100) >= 90
    cost, (low, high) = mean_cost(difference, dear, np.random.default_rng(0))
    assert cost == pytest.approx(1.9e-6)
    assert low < cost < high < 2.5e-6


@pytest.mark.parametrize(("to_disk", "num_copies"), [(False, 4), (True, 4)])
def test_every_copy_of_a_real_engine_is_seen(to_disk, num_copies):
    """64 steps of 16 sequences: four copies, two of them written."""
    assert (PENDING_TOKENS, FLUSH_TOKENS) == (256, 512)
    with moelab.load(moelab.shipped("nano/model")) as engine:
        cost = recording_cost(engine, 64, 16, to_disk)
    assert cost.num_copies == num_copies
    assert cost.step_ms > 0
    assert (cost.model, cost.gate_percent) == ("nano", 3.0)
    assert cost.within_gate == (cost.interval_percent[1] <= 3.0)
    assert cost.interval_percent[0] <= cost.overhead_percent <= cost.interval_percent[1]
    assert cost.gb_per_s > 0
    assert cost.percent_of_read_limit is None, "nano fits the cache: no percentage"


@pytest.mark.skipif(choose_isa().isa == "numba", reason="native kernels are not built")
def test_the_slice_in_memory_and_to_disk(monkeypatch, capsys):
    """Each is a row with the slice's gate; nano alone is not loaded for them."""
    tiny = ModelSpec.from_hf_config(json.loads((moelab.shipped("nano/model") / "config.json").read_text()))
    monkeypatch.setattr(ModelSpec, "preset", classmethod(lambda cls, name: tiny))
    monkeypatch.setattr(recording, "PENDING_TOKENS", 8)
    monkeypatch.setattr(recording, "FLUSH_TOKENS", 16)
    arguments = ["bench", "recording", "--seconds", "0.01", "--parts"]
    assert not main([*arguments, "slice", "slice-disk", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["model"], row["to_disk"], row["gate_percent"]) for row in rows] == [
        ("slice", False, 1.0), ("slice", True, 1.0),
    ]  # fmt: skip
    assert [row["num_pairs"] % count for row, count in zip(rows, (8, 16), strict=True)] == [0, 0]
    assert main([*arguments, "sliced"]) == 2
    assert "expected some of nano, slice, slice-disk; got sliced" in capsys.readouterr().err
