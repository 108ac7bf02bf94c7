"""Calibrations of a busy machine are marked: in the document, in print, in JSON, and where plans name their price."""

import json
from importlib import import_module

import pytest

from moelab.calibration.doubts import doubts_of
from moelab.cli import main
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.machine import Machine, NumaNode
from moelab.planner.cut_price import measured_price


def machine(*, spread=0.1, residual=0.01, expert_s=1e-3, seconds_of=(1,)):
    times = ExpertTimes(
        kernel="generic/int4_g32/int8", hidden_size=64, intermediate_size=256, expert_bytes=10_000_000,
        workers_of_node=1, layer_s=0.0, token_s=0.0, expert_s=dict.fromkeys(seconds_of, expert_s),
        piece_factor={2: 1.1}, read_gb_per_s=10.0, residual=residual, num_calls=1,
    )  # fmt: skip
    nodes = tuple(NumaNode(name=f"node{n}", cores=(n,), memory_bytes=10**9) for n in range(2))
    residuals = {"reads_spread": spread, times.name: residual}
    return Machine(
        name="m", source="calibration", date="2026-01-01", nodes=nodes, expert_times=(times,), residuals=residuals
    )


def test_a_quiet_machine_is_not_in_doubt():
    assert doubts_of(machine(spread=0.5, residual=0.05, expert_s=1.0001e-3 / 1.1)) == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spread": 2.67}, "read rates spread over 267% of their median, expected at most 50%"),
        ({"residual": 0.1}, "residual of the fit 10.0%, expected at most 5%"),
        ({"expert_s": 0.5e-3}, "the kernel reads 20.0 GB/s, a pure read 10.0, expected at most 1.1 times"),
        ({"expert_s": 0.0}, "the kernel reads inf GB/s"),
    ],
)
def test_each_figure_beyond_its_limit_is_named(changes, says):
    (found,) = doubts_of(machine(**changes))
    assert says in found
    assert "calibrate again" in found


def test_it_is_seen_wherever_the_machine_is(tmp_path, capsys, monkeypatch):
    plain = machine(residual=0.1)
    doubtful = plain.model_copy(update={"notes": doubts_of(plain)})
    doubtful.save(tmp_path / "machine.json")
    assert Machine.load(tmp_path / "machine.json").notes == doubtful.notes != ()
    assert "IN DOUBT 1" in repr(doubtful)
    assert doubtful.fingerprint() == plain.fingerprint()
    price = measured_price(doubtful, 64, 256, 2)
    assert price.source.endswith("residual 10.0%; in doubt: see the machine's notes")
    assert measured_price(plain, 64, 256, 2).source.endswith("residual 10.0%")
    monkeypatch.setattr("moelab.calibration.calibrate", lambda *shapes, **options: doubtful)
    out = str(tmp_path / "machine.json")
    assert main(["calibrate", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "IN DOUBT: see below" in printed
    assert "residual of the fit 10.0%" in printed
    assert main(["calibrate", "--out", out, "--json"]) == 0
    assert "residual of the fit" in json.loads(capsys.readouterr().out)["machine"]["notes"][0]


def test_calibrate_judges_what_it_measured(tmp_path, monkeypatch):
    module = import_module("moelab.calibration.calibrate")
    monkeypatch.setattr(module, "doubts_of", lambda found: (f"judged {found.expert_times[0].hidden_size}",))
    if module.library()[0] is None:
        pytest.skip("native kernels are not built")
    found = module.calibrate(["256x128"], isa="generic", seconds=1.0, out=tmp_path / "machine.json", progress=False)
    assert found.notes == Machine.load(tmp_path / "machine.json").notes == ("judged 256",)
