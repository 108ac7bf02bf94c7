"""Machine: what the operating system says, files and presets."""

import os

import numpy as np
import pytest

from moelab.domain import machine as module
from moelab.domain.machine import Machine, NumaNode, parse_core_list


def test_detect_lists_the_cores_that_may_be_used():
    machine = Machine.detect()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    cores = [core for node in machine.nodes for core in node.cores]
    assert 1 <= len(cores) <= len(allowed)
    assert set(cores) <= set(allowed)
    assert sum(node.memory_bytes for node in machine.nodes) > 2**28
    assert machine.source == "detected"
    assert all(node.best_read_gb_per_s is None for node in machine.nodes)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks on this platform")
def test_detect_respects_the_affinity_mask():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert Machine.detect().num_cores == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.0, 1), (1.5, 2), (None, None)])
def test_quota_bounds_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(module, "cgroup_core_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert len(module.allowed_cores()) == (cores or 8)


def test_core_lists():
    assert parse_core_list("0-3,8\n") == [0, 1, 2, 3, 8]
    assert parse_core_list("") == []


def test_files_round_trip(tmp_path):
    node = NumaNode(name="node0", cores=(0, 1), memory_bytes=10, read_gb_per_s={1: 9.5, 2: 17.25})
    machine = Machine(name="m", source="calibration", nodes=(node,), layer_overhead_s=1e-5)
    machine.save(tmp_path / "new" / "machine.json")
    assert Machine.load(tmp_path / "new" / "machine.json") == machine
    assert machine.nodes[0].best_read_gb_per_s == 17.25


def test_wrong_files_name_themselves(tmp_path):
    path = tmp_path / "machine.json"
    with pytest.raises(ValueError, match=r"machine\.json does not exist"):
        Machine.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a machine file"):
        Machine.load(path)


def test_presets_are_peaks_that_say_so():
    assert len(Machine.presets()) >= 3
    for name in Machine.presets():
        machine = Machine.preset(name)
        assert machine.source == "preset"
        assert machine.name == name
        assert "peak" in machine.cpu
    gen4 = Machine.preset("2x-xeon-gen4-ddr5-4800")
    np.testing.assert_allclose(sum(n.best_read_gb_per_s for n in gen4.nodes), 2 * 8 * 8 * 4.8)
    with pytest.raises(ValueError, match="machine preset is nowhere, expected one of"):
        Machine.preset("nowhere")
