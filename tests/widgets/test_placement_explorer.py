"""The explorer without a browser: traits and messages do what the methods do, figures are the twin's."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import moelab
from moelab.exploration import MAP_LAYERS, Settings, select
from moelab.widgets import PlacementExplorer
from moelab.widgets.background import Background
from moelab.widgets.expert_map import EDITED, PINNED
from tests.exploration.test_explore import EXPERTS, LAYERS, machine_with, trace_of


def explorer(num_nodes=1, **options):
    view = PlacementExplorer(trace_of(1), machine_with(num_nodes), settings=Settings(4), **options)
    assert view.wait()
    return view


def without_time(figures):
    return {name: value for name, value in figures.items() if name != "seconds"}


def test_preview_then_full():
    view = PlacementExplorer(trace_of(1), machine_with(1), settings=Settings(4))
    twin = view.exploration.preview(view.settings).figures.as_dict()
    assert without_time(view.figures) == without_time(twin)
    assert (view.status, view.can_cancel) == ("busy", True)
    assert view.wait()
    twin = view.exploration.full(view.settings).figures.as_dict()
    assert without_time(view.figures) == without_time(twin)
    assert (view.status, view.can_cancel) == ("ready", False)


def test_cancel_keeps_the_preview():
    view = PlacementExplorer(trace_of(1), machine_with(1), settings=Settings(4))
    view._on_message(view, {"do": "cancel"}, [])
    assert view.wait()
    assert view.figures["is_preview"]
    assert "press Full figure" in view.message
    view._on_message(view, {"do": "full"}, [])
    assert view.wait()
    assert not view.figures["is_preview"]


def test_traits_as_a_browser_sets_them():
    view = explorer(2)
    view.set_state({"slots_per_layer": 6, "asked": 1})
    assert view.settings == Settings(6)
    assert view.answered == 1
    view.set_state({"policy": "lru", "asked": 2})
    assert view.plan.policy.name == "lru"
    view.set_state({"slots_per_layer": 0, "asked": 3})
    view.set_state({"nodes": 2, "asked": 4})  # planner and policy that no longer fit give way
    assert view.settings == Settings(0, 2, 0.0, "replicate", "static")
    view.set_state({"extra_memory": 0.25, "planner": "row_split", "asked": 5})
    assert view.settings == Settings(0, 2, 0.25, "row_split", "static")
    assert view.choices["nodes"] == [1, 2, 4, 6, 8]
    assert "joint" not in view.choices["planners"]
    view.set_state({"planner": "nobody", "asked": 6})
    assert view.status == "error"
    assert "expected one of" in view.message
    view.set_state({"slots_per_layer": 99, "planner": "joint", "asked": 7})
    assert view.slots_per_layer == EXPERTS


@pytest.mark.parametrize("name", MAP_LAYERS)
@pytest.mark.parametrize("order", ["id", "load"])
def test_map_is_the_layer(name, order):
    view = explorer()
    view.colour_by, view.map_order = name, order
    cells = LAYERS * EXPERTS
    got = np.frombuffer(view.map_data[: 4 * cells], np.float32).reshape(LAYERS, EXPERTS)
    ids = np.frombuffer(view.map_data[4 * cells : 6 * cells], np.uint16).reshape(LAYERS, EXPERTS)
    np.testing.assert_array_equal(got, np.take_along_axis(view.map_layer(name).values, ids.astype(int), 1))
    if order == "load":
        assert (np.diff(np.take_along_axis(view.exploration.loads, ids.astype(int), 1), axis=1) <= 0).all()
    if name == "regret":
        twin = view.exploration.full(view.settings).regret
        np.testing.assert_array_equal(view.map_layer(name).values, twin.astype(np.float32))


def test_edits_by_message():
    view = explorer()
    view._on_message(view, {"do": "query", "text": 'load < 1 and tier != "fast0" and layer == 1'}, [])
    expected = select("load < 1", {"load": view.map_layer("load").values}) & ~view.outcome.draft.fast
    expected[[0, 2]] = False
    np.testing.assert_array_equal(view.chosen, expected)
    assert view.num_selected == expected.sum() > 4
    view._on_message(view, {"do": "pin"}, [])
    assert view.status == "error"
    assert "choose fewer experts or give it more slots" in view.message
    assert view.edits == ()
    view.choose(np.arange(EXPERTS) == np.array([[3], [5], [7]]))
    view._on_message(view, {"do": "pin"}, [])
    assert view.edits_made == ["pin 3 experts"]
    marks = np.frombuffer(view.map_data[6 * LAYERS * EXPERTS :], np.uint8)
    assert (marks == PINNED | EDITED).sum() == 3
    twin = view.exploration.preview(view.settings, view.edits).figures.as_dict()
    assert view.wait()
    assert twin["reads_per_layer_step"] > 0
    assert view.figures["placed_by"] == "frequency, 1 edit by hand"
    view._on_message(view, {"do": "undo"}, [])
    assert view.edits_made == []
    view._on_message(view, {"do": "query", "text": "load >"}, [])
    assert "is not an expression" in view.message
    view._on_message(view, {"do": "apply"}, [])
    assert "no live engine" in view.message


def test_save_keep_and_saved_notebook(tmp_path):
    view = explorer()
    view.keep()
    view.slots_per_layer = 6
    assert view.wait()
    assert view.kept["settings"] == "frequency, 4 slots a layer, static, 1 node"
    assert view.kept["reads_per_layer_step"] > view.figures["reads_per_layer_step"]
    assert view.kept_plan.fast_tiers[0].slots_per_layer == (4,) * LAYERS
    view._on_message(view, {"do": "save", "path": str(tmp_path / "p.json")}, [])
    plan = moelab.Plan.load(tmp_path / "p.json")
    assert plan.prediction["tok_per_s"] == view.figures["tok_per_s"]
    view._on_message(view, {"do": "save", "path": str(tmp_path / "no" / "p.json")}, [])
    assert view.status == "error"
    data, _ = view._repr_mimebundle_()
    assert "data:image/png" in data["text/html"]
    assert "reads_per_layer_step" in data["text/html"]
    assert "frequency, 6 slots a layer" in data["text/plain"]


def test_empty():
    view = PlacementExplorer()
    assert view.status == "empty"
    assert "moelab.open_trace" in view.message
    assert "moelab.open_trace" in view.static_html()


def test_background_ends_what_is_not_wanted():
    shown, results, reached = [], [], threading.Event()
    background = Background(lambda what, share: shown.append(what))

    def long(report):
        for n in range(1000):
            report("old", n / 1000)
            reached.set()
            time.sleep(0.01)
        return "old"

    background.start(long, results.append, results.append)
    assert reached.wait(10)
    background.start(lambda report: "new", results.append, results.append)
    assert background.wait()
    assert results == ["new"]
    assert shown == ["old"] or set(shown) == {"old"}

    def fails(report):
        raise ValueError("broken")

    background.start(fails, results.append, lambda error: results.append(str(error)))
    assert background.wait()
    assert results == ["new", "broken"]
    background.start(lambda report: "never", results.append, results.append, after_s=0.2)
    background.cancel()
    assert background.wait()
    assert results == ["new", "broken"]
