"""Machine: what the operating system says, files and presets."""

import os

import numpy as np
import pytest

import moelab
from moelab.domain.machine import Machine, NumaNode
from tests.seeded_traces import seeded_trace


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


def test_every_preset_reads_at_channels_times_transfers():
    for name in Machine.presets():
        machine = Machine.preset(name)
        for node in machine.nodes:
            np.testing.assert_allclose(node.best_read_gb_per_s, node.memory_channels * 8 * node.transfer_mt_per_s / 1e3)
            assert node.peak_gb_per_s == pytest.approx(node.best_read_gb_per_s)
            assert max(node.read_gb_per_s) == len(node.cores)
        assert len({core for node in machine.nodes for core in node.cores}) == machine.num_cores
        assert all(0 < fraction < 1 for fraction in machine.published_read_fractions.values())
    totals = {name: sum(n.peak_gb_per_s for n in Machine.preset(name).nodes) for name in Machine.presets()}
    # Channel arithmetic of facts section 2, and the articles' 0.6 to 1.7 TB/s.
    assert totals["2x-xeon-gen5-ddr5-5600"] == pytest.approx(716.8)
    assert totals["2x-xeon-gen6-ddr5-6400"] == pytest.approx(1228.8)
    assert totals["forge-moe-gen4"] == pytest.approx(614.4)
    assert totals["forge-moe-gen6"] == pytest.approx(1689.6)
    memory = {name: sum(n.memory_bytes for n in Machine.preset(name).nodes) / 2**40 for name in Machine.presets()}
    assert memory["forge-moe-gen4"] == 1.5
    assert memory["forge-moe-gen6"] == 3


def test_gpus_stand_beside_any_preset():
    from moelab.domain.machine_presets import GPUS

    assert min(gpu.memory_bytes for gpu in GPUS.values()) == 24 * 2**30
    assert max(gpu.memory_bytes for gpu in GPUS.values()) == 141 * 10**9
    # The vendors' own round figures, beside bus x rate of a pin.
    stated = {"rtx-3090": 936, "rtx-4090": 1008, "rtx-5090": 1792, "l20": 864, "l40s": 864, "rtx-pro-6000": 1792}
    stated |= {"a100-80gb": 1935, "h100-80gb": 3350, "h200": 4800}
    assert {name: gpu.read_gb_per_s for name, gpu in GPUS.items()} == pytest.approx(stated, abs=0.5)
    assert all(gpu.source for gpu in GPUS.values())
    for base in Machine.presets():
        for gpu, one in GPUS.items():
            machine = Machine.preset(f"{base}+2x-{gpu}")
            assert machine.name == f"{base}+2x-{gpu}"
            assert machine.nodes == Machine.preset(base).nodes
            assert [t.name for t in machine.fast_tiers] == ["fast0", "fast1"]
            for tier in machine.fast_tiers:
                assert (tier.device, tier.memory_bytes, tier.read_gb_per_s, tier.link_gb_per_s) == (
                    one.device, one.memory_bytes, one.read_gb_per_s, one.link_gb_per_s,
                )  # fmt: skip
                assert tier.node in {node.name for node in machine.nodes}
    assert [t.node for t in Machine.preset("forge-moe-gen6").fast_tiers] == ["node0", "node1"]
    assert len(Machine.preset("4x-rtx-3090-256gb").fast_tiers) == 4
    assert len(Machine.preset("forge-moe-gen6+h200").fast_tiers) == 1
    for wrong in ("forge-moe-gen6+gpu", "nowhere+h200", "forge-moe-gen6+9x-h200", "forge-moe-gen6+"):
        assert not Machine.is_preset(wrong)
        with pytest.raises(ValueError, match=r"machine preset is .*NAME\+2x-GPU of rtx-3090"):
            Machine.preset(wrong)


def test_fingerprints_of_older_documents_stay():
    """Fields that were added since say nothing about costs, so plans made before still name their machine."""
    old = NumaNode(name="node0", cores=(0, 1), memory_bytes=10, read_gb_per_s={2: 9.5})
    machine = Machine(name="m", source="calibration", nodes=(old,), layer_overhead_s=1e-5)
    assert machine.fingerprint() == "83a85c78d3a9f076"
    said = old.model_copy(update={"memory_channels": 2, "transfer_mt_per_s": 4800})
    assert machine.model_copy(update={"nodes": (said,)}).fingerprint() == machine.fingerprint()
    assert machine.model_copy(update={"unified_memory": True}).fingerprint() != machine.fingerprint()


def test_rate_of_all_nodes_is_that_at_once():
    nodes = tuple(NumaNode(name=f"node{n}", cores=(n,), memory_bytes=1, read_gb_per_s={1: 30.0}) for n in range(2))
    machine = Machine(name="m", source="calibration", nodes=nodes, contention={"read_share_of_2_nodes": 0.6})
    assert machine.read_gb_per_s == pytest.approx(36)
    assert machine.model_copy(update={"contention": {}}).read_gb_per_s == 30
    assert Machine.detect().read_gb_per_s is None


def test_a_machine_by_name_is_the_preset_everywhere(tmp_path):
    """In Python as at the command line; what does not exist lists what does."""
    preset = Machine.preset("forge-moe-gen4")
    assert Machine.given("forge-moe-gen4") == Machine.given(preset) == preset
    assert Machine.given(None) is None
    preset.save(tmp_path / "mine.json")
    assert Machine.given(str(tmp_path / "mine.json")) == preset
    trace = seeded_trace(0)
    fast = moelab.PLANNERS["frequency"](trace, slots_per_layer=3)
    one_node = "1x-epyc-9004-ddr5-4800"
    calls = {
        "simulate": lambda m: moelab.simulate(trace, fast, m, progress=False).summary(),
        "frequency": lambda m: moelab.PLANNERS["frequency"](trace, slots_per_layer=3, machine=m).prediction,
        "water_filled": lambda m: moelab.PLANNERS["water_filled"](trace, slots_per_layer=3, machine=m).prediction,
        "eplb": lambda m: moelab.PLANNERS["eplb"](trace, nodes=2, machine=m).planner["rates"],
    }
    for name, call in calls.items():
        assert call(one_node) == call(Machine.preset(one_node)), name
        with pytest.raises(ValueError, match=r"machine preset is foo, expected one of .*forge-moe-gen4.*rtx-4090"):
            call("foo")
        with pytest.raises(TypeError, match=r"machine is a int, expected moelab.this_machine\(\)"):
            call(7)
    with pytest.raises(ValueError, match="machine preset is foo"):
        moelab.replay(trace, fast, machine="foo", progress=False)
