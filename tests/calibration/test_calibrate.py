"""moelab.calibrate: a real, short calibration at a small shape, what is written, what stays, and what is refused."""

import json
import os

import numpy as np
import pytest

import moelab
from moelab.calibration.calibrate import shape_of
from moelab.calibration.rounds import FEWEST_ROUNDS, in_rounds
from moelab.cli import main
from moelab.domain.machine import Machine
from moelab.kernels.native import library
from moelab.planner.cut_price import measured_price

SMALL, OTHER = "512x256", "256x128"
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
needs_native = pytest.mark.skipif(library()[0] is None, reason="native kernels are not built")
needs_two_cores = pytest.mark.skipif(cores < 2, reason="one core only")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    out = tmp_path_factory.mktemp("machine") / "machine.json"
    return moelab.calibrate([SMALL], virtual_nodes=2, isa="generic", seconds=1.0, out=out, progress=False), out


@needs_native
@needs_two_cores
def test_everything_is_measured(calibrated):
    machine, out = calibrated
    assert Machine.load(out) == machine
    assert machine.source == "calibration"
    assert machine.date
    assert machine.virtual
    assert [len(node.cores) for node in machine.nodes] == [
        machine.num_cores // 2,
        machine.num_cores - machine.num_cores // 2,
    ]
    for node in machine.nodes:
        assert node.best_read_gb_per_s > 0.1
        assert node.read_gb_per_s_spread.middle == node.best_read_gb_per_s
    assert 0 < machine.contention["read_share_of_2_nodes"] <= 1
    assert machine.layer_overhead_s > 0
    assert machine.barrier_s >= 0
    times = machine.times_of(512, 256, "generic/int4_g32/int8")
    assert times is not None
    assert times.expert_s[8] > times.expert_s[1] > 0
    spread = times.expert_s_spread
    assert 0 < spread.low <= spread.middle <= spread.high
    assert spread.middle == pytest.approx(times.expert_s[1])
    assert spread.num_rounds >= FEWEST_ROUNDS
    assert set(times.piece_factor) == {2, 4, 8}
    assert times.busy[2].kernel_share > 0.1
    assert times.uploads is None or 0 < times.uploads.start_s < 0.5
    assert [node.workers for node in times.nodes] == [len(node.cores) for node in machine.nodes]
    assert times.nodes[0].factor == dict.fromkeys(times.nodes[0].factor, 1.0)
    assert all(0.1 < factor < 10 for node in times.nodes for factor in node.factor.values())
    assert times.scaled_by is None
    assert times.uploads is None or times.uploads.alone_gb_per_s > 0.05  # none on a machine that is busy otherwise
    assert machine.residuals[times.name] == times.residual
    assert machine.times_of(512, 128) is None
    assert "ms an expert" in repr(machine)


@needs_native
@needs_two_cores
def test_another_shape_is_added_and_the_same_one_replaced(calibrated, capsys):
    machine, out = calibrated
    arguments = ["calibrate", "--virtual-nodes", "2", "--isa", "generic", "--seconds", "1", "--out", str(out), "--json"]
    assert main([*arguments, "--expert-shape", OTHER]) == 0
    says = json.loads(capsys.readouterr().out)
    assert says["seconds"] > 0
    both = Machine.load(out)
    assert says["machine"] == both.model_dump(mode="json")
    assert [each.hidden_size for each in both.expert_times] == [256, 512]
    (new, kept), (old,) = both.expert_times, machine.expert_times
    assert kept == old
    assert [new.date, kept.date] == [both.date, machine.date]
    # A file of before has no date of its own for each; a day later what stays is still of that day.
    former = machine.model_copy(update={"date": "2026-01-02", "expert_times": (old.model_copy(update={"date": None}),)})
    former.save(out)
    assert main([*arguments, "--expert-shape", OTHER]) == 0
    (new, kept) = (later := Machine.load(out)).expert_times
    assert (new.date, kept.date) == (later.date, "2026-01-02")
    assert f"residual {kept.residual:.1%} of 2026-01-02" in repr(later)
    assert ", 2026-01-02, residual" in measured_price(later, 512, 256, 2).source
    machine.save(out)
    assert not list(out.parent.glob("*.partial"))


@needs_native
@needs_two_cores
def test_times_change_the_fingerprint_and_none_leave_it(calibrated):
    machine, _ = calibrated
    plain = machine.model_copy(update={"expert_times": ()})
    assert plain.fingerprint() != machine.fingerprint()
    assert Machine.detect().fingerprint() == Machine.detect().fingerprint()


@needs_native
@needs_two_cores
def test_refused(tmp_path, capsys):
    out = tmp_path / "machine.json"
    out.write_text("{}")
    with pytest.raises(ValueError, match="is not a machine file"):
        moelab.calibrate([SMALL], virtual_nodes=2, out=out, seconds=1.0, progress=False)
    assert out.read_text() == "{}"  # nothing else is overwritten
    with pytest.raises(ValueError, match="under two minutes"):
        moelab.calibrate([SMALL], seconds=500)
    with pytest.raises(ValueError, match="expected a native one"):
        moelab.calibrate([SMALL], isa="numba")
    assert main(["calibrate", "--virtual-nodes", "2"]) == 2
    assert "needs --out" in capsys.readouterr().err
    assert main(["calibrate", "--out", str(tmp_path / "no" / "machine.json")]) == 2
    assert "folder does not exist" in capsys.readouterr().err


def test_shapes():
    assert shape_of("7168x2048") == (7168, 2048)
    assert shape_of("kimi-k2.6") == (7168, 2048)
    with pytest.raises(ValueError, match="no-such"):
        shape_of("no-such")


def test_rounds_interleave_and_warm_up():
    order = []
    values = in_rounds(
        {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}, seconds=0.0, seed=3
    )
    assert {len(each) for each in values.values()} == {FEWEST_ROUNDS}
    rounds = np.array(order).reshape(-1, 3)
    assert len(rounds) == FEWEST_ROUNDS + 1
    assert all(sorted(row) == ["a", "b", "c"] for row in rounds)
    assert len({tuple(row) for row in rounds}) > 1
    assert min(min(each) for each in values.values()) > 3  # the first round is left out
