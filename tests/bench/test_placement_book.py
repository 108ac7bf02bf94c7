"""What the placement bench keeps: plans that the present planners would not make are made anew, results say where."""

import json
from importlib import import_module

import pytest

from moelab.bench.placement import core_bound as core
from moelab.bench.placement.page import measured_where
from moelab.bench.placement.result import PlacementResult, measured_on
from tests.seeded_traces import seeded_trace

run_module = import_module("moelab.bench.placement.run")
CHOSEN = (("round_robin", 0.0), ("mirror", 1.0))


@pytest.fixture
def made(monkeypatch):
    """Names of planners in the order that they really ran."""
    calls, real = [], core.make_plans

    def make(trace, *, plans):
        calls.append([name for name, _ in plans])
        return real(trace, plans=plans)

    monkeypatch.setattr(run_module, "make_plans", make)
    return calls


def test_plans_are_kept_until_sources_or_options_change(tmp_path, monkeypatch, made):
    trace = seeded_trace(3, num_experts=8, num_requests=8)

    def planned():
        return run_module._planned("here", trace, str(tmp_path), CHOSEN)

    first, again = planned(), planned()
    assert made == [["round_robin", "mirror"]]
    assert again.plans == first.plans
    monkeypatch.setattr(core, "stamp_of_room", lambda room: f"edited {room}")
    planned()
    planned()
    assert len(made) == 2
    monkeypatch.setattr(core, "_FEWER_VISITS", {"anneal": {"most_visits": 7}})
    planned()
    assert len(made) == 3
    book = json.loads((tmp_path / "here.json").read_text())
    assert book["made_by"] == core.made_by()
    assert book["made_by"]["options"]["anneal"] == {"most_visits": 7}
    del book["made_by"]  # a book from before
    (tmp_path / "here.json").write_text(json.dumps(book))
    planned()
    assert len(made) == 4


def test_results_say_when_and_where(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "pieces", lambda **options: [row("64x32"), row("128x32")])
    result = run_module.run(0.1, traces=[], parts=("pieces",), keep=str(tmp_path / "kept.json"))
    here = measured_on()
    assert {name: result.pieces[1][name] for name in ("machine", "date")} == here
    kept = PlacementResult.load(tmp_path / "kept.json")
    assert f"Measured {here['date']} on {here['machine']}." in kept.markdown()
    old = measured_where([{}, here | {"date": "2025-01-02"}, here])
    assert old.startswith("Measured on a machine and day that nobody noted; 2025-01-02 on ")
    assert old.count("on " + here["machine"]) == 2


def row(shape):
    return {
        "shape": shape, "hidden_size": 64, "intermediate_size": 32, "expert_bytes": 10**6, "nodes": 2,
        "experts": 8, "composed": False, "kernel": "generic", "us": {"whole": 2.0, "cut": 1.0},
        "over_whole": {"whole": 1.0, "cut": 0.5}, "over_whole_interval": {"whole": (1.0, 1.0), "cut": (0.4, 0.6)},
        "bytes_over_whole": {"whole": 1.0, "cut": 0.5}, "wins": "cut",
    }  # fmt: skip
