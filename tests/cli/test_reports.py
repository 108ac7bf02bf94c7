"""``--report`` of simulate and sweep: one self-contained page with the pictures and the numbers of the result."""

import json

import pytest

from moelab.cli import main
from moelab.store import TraceWriter
from tests.seeded_traces import seeded_trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    trace = seeded_trace(5, num_requests=3)
    path = tmp_path_factory.mktemp("trace") / "trace"
    with TraceWriter(path, trace.header) as writer:
        writer.append(trace.experts, trace.gate_weights, trace.tokens)
    return path


def assert_page(page, *words):
    text = page.read_text()
    assert "Plotly.newPlot" in text
    assert "<script src=" not in text, "needs a network"
    for word in ("SYNTHETIC", *words):
        assert word in text


def test_sweep_page_has_oracles_and_regret(folder, tmp_path, capsys):
    page = tmp_path / "sweep.html"
    arguments = [
        "sweep",
        folder,
        "--policies",
        "lru",
        "admit_lfru",
        "--capacities",
        "2",
        "6",
        "--out",
        tmp_path / "rows",
    ]
    assert main([*map(str, arguments), "--report", str(page), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["policy"] for row in rows} == {"lru", "admit_lfru", "min_bypass", "min_demand"}
    assert_page(page, "Regret of each policy", "What is missed", f"{rows[0]['reads_per_layer_step']:.3f}")


def test_simulation_page(folder, tmp_path, capsys):
    page = tmp_path / "simulation.html"
    assert main(["simulate", str(folder), "--slots", "3", "--machine", "desktop-ddr5-6000", "--report", str(page)]) == 0
    assert "report: " in capsys.readouterr().out
    assert_page(page, "Reads of a layer-step", "hit_rate_per_request")


@pytest.mark.parametrize("command", ["simulate", "sweep"])
def test_page_without_a_folder_is_refused_before_any_work(command, folder, tmp_path, capsys):
    more = ["--policies", "lru", "--capacities", "2", "--out", str(tmp_path / "rows")] if command == "sweep" else []
    assert main([command, str(folder), *more, "--report", str(tmp_path / "none" / "x.html")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()
