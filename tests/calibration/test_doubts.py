"""Calibrations of a busy machine are marked: in the document, in print, in JSON, and where plans name their price."""

import json
from importlib import import_module

import numpy as np
import pytest

from moelab.calibration import reads
from moelab.calibration.doubts import doubts_of, unsteady_of
from moelab.cli import main
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.machine import Machine, NumaNode
from moelab.domain.spread import Spread
from moelab.kernels.native import library
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


def spread(low, high, *, middle=1.0):
    return Spread(low=low * middle, middle=middle, high=high * middle, drift=-0.07, num_rounds=20)


def moving(of_node, of_kernel):
    plain = machine()
    nodes = (plain.nodes[0], plain.nodes[1].model_copy(update={"read_gb_per_s_spread": of_node}))
    times = plain.expert_times[0].model_copy(update={"expert_s_spread": of_kernel})
    return plain.model_copy(update={"nodes": nodes, "expert_times": (times,)})


def test_a_machine_that_moved_says_by_how_much():
    assert unsteady_of(machine()) is None  # nobody noted it
    assert unsteady_of(moving(spread(0.96, 1.05), spread(0.95, 1.04, middle=1e-3))) is None
    only = unsteady_of(moving(spread(0.95, 1.06, middle=30.0), spread(0.96, 1.05)))
    assert "apart by more than 10%: node1 reads 11%. Predictions in ms may be off by as much" in only
    both = unsteady_of(moving(spread(0.95, 1.06), spread(0.7, 1.2, middle=1e-3)))
    assert "node1 reads 11%, generic/int4_g32/int8 at 64 x 256 50%." in both
    assert both.endswith("calibrate again on a quieter machine, or use ratios of them")
    assert doubts_of(moving(spread(0.5, 2.0), None)) == (), "it holds for its minutes"


def test_the_command_warns(tmp_path, capsys, monkeypatch):
    for found, warns in ((moving(spread(0.95, 1.3, middle=30.0), None), True), (machine(), False)):
        monkeypatch.setattr("moelab.calibration.calibrate", lambda *shapes, found=found, **options: found)
        out = str(tmp_path / "machine.json")
        assert main(["calibrate", "--out", out]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert ("UNSTEADY quartiles of the rounds" in printed) is warns
        assert main(["calibrate", "--out", out, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["unsteady"] == unsteady_of(found)


def test_reads_of_a_memory_of_known_speeds_have_its_spread(monkeypatch):
    """Reads are made up: rounds at 20 GB/s, then at 10; the second node, where there is one, always at 16."""
    if library()[0] is None:
        pytest.skip("native kernels are not built")
    seen = dict.fromkeys(range(2), 0)

    def read_nodes(addresses, node_of_address, num_bytes, loop, pool):
        node = int(node_of_address[0])
        total = len(addresses) * num_bytes
        if len({*node_of_address}) == 1:
            seen[node] += 1
        rate = 16.0 if node else (20.0 if seen[0] <= 1 + 4 else 10.0)  # the first round is left out
        return np.array([total / rate / 1e9])

    monkeypatch.setattr(reads, "read_nodes", read_nodes)
    monkeypatch.setattr(reads, "_CACHES", 0.01)
    two = len(reads.Pool().node_of_worker) > 1
    found = reads.node_reads(virtual_nodes=2 if two else 1, cache_bytes=1, seconds=0.0, on_round=lambda share: None)
    rates = found.spread_of_node[0]
    assert (rates.low, rates.middle, rates.high, rates.num_rounds) == pytest.approx((20, 20, 20, 5))
    assert rates.drift == pytest.approx(-0.5)
    if two:
        assert found.spread_of_node[1] == Spread(low=16, middle=16, high=16, drift=0, num_rounds=5)
