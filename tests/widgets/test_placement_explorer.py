"""The explorer without a browser: traits and messages do what the methods do, figures are the twin's."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moelab
from moelab.exploration import MAP_LAYERS, Settings, select
from moelab.widgets import PlacementExplorer
from moelab.widgets.background import Background
from moelab.widgets.expert_map import EDITED, PINNED
from tests.exploration.test_explore import EXPERTS, LAYERS, machine_with, trace_of


def explorer(num_nodes=1, settings_of=Settings(4), **options):  # noqa: B008  frozen
    view = PlacementExplorer(trace_of(1), machine_with(num_nodes), settings=settings_of, **options)
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


def test_a_planner_that_does_not_fit_gives_way_and_the_note_says_so():
    view = explorer(2)
    view.nodes = 2
    assert view.wait()
    view.planner = "anneal"  # whole experts on nodes; beside a fast tier only `joint` places
    assert view.planner == view.settings.planner == "joint"
    assert view.note == "anneal does not go with 2 node(s) and 4 slots a layer: joint in its place"
    assert view.wait()
    assert view.status == "ready"


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
    assert view.note.startswith("Saved the plan as")
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


def test_no_tokens_and_wrong_types_say_what_is_expected(tmp_path):
    none = PlacementExplorer(trace_of(1).take(slice(0, 0)))
    assert (none.status, none.message) == ("empty", "This trace has no tokens: record some (moelab.record) first.")
    with pytest.raises(TypeError, match=r"trace is str, expected a Trace or moelab\.open_trace"):
        PlacementExplorer("folder")
    with pytest.raises(TypeError, match="machine is int, expected a Machine"):
        PlacementExplorer(trace_of(1), 7)
    view = PlacementExplorer(moelab.open_trace(moelab.shipped("nano/capture")), "forge-moe-gen4")
    assert view.exploration.trace.num_tokens > 0
    assert view.exploration.machine == moelab.Machine.preset("forge-moe-gen4")
    view.close()


def test_wait_ends_with_cancel_and_with_an_interrupt(monkeypatch):
    """The work itself only ends at its next report: who waits does not wait for that."""
    view = explorer()
    begun, may_end = threading.Event(), threading.Event()

    def slow(settings, edits, report):
        begun.set()
        may_end.wait(60)

    monkeypatch.setattr(view.exploration, "full", slow)
    view._on_message(view, {"do": "full"}, [])
    assert begun.wait(10)
    assert not view.wait(0.2), "it still runs"
    threading.Timer(0.3, lambda: view._on_message(view, {"do": "cancel"}, [])).start()
    begin = time.monotonic()
    assert view.wait(30)
    assert time.monotonic() - begin < 20
    assert "Cancelled. The preview stands" in view.message
    view._on_message(view, {"do": "full"}, [])

    def interrupted(timeout_s):
        raise KeyboardInterrupt

    monkeypatch.setattr(view.background, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        view.wait()
    assert "Cancelled. The preview stands" in view.message
    assert not view.can_cancel
    may_end.set()


def test_close_ends_what_runs(monkeypatch):
    view = explorer()
    begun, ended = threading.Event(), threading.Event()

    def slow(settings, edits, report):
        try:
            for n in range(2000):
                report("slow", n / 2000)
                begun.set()
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(view.exploration, "full", slow)
    view.full()
    assert begun.wait(10)
    view.close()
    assert ended.wait(10)


def test_an_edit_is_simulated_once(monkeypatch):
    view, calls = explorer(), []
    preview = view.exploration.preview
    monkeypatch.setattr(view.exploration, "preview", lambda *given: calls.append(given) or preview(*given))
    view.choose(np.arange(EXPERTS) == np.array([[3], [5], [7]]))
    view.edit("pin")
    assert len(calls) == 1
    assert without_time(view.figures) == without_time(preview(view.settings, view.edits).figures.as_dict())
    assert view.wait()
    with pytest.raises(ValueError, match="expected fast0 or one of node0"):
        view.edit("move", "node9")
    assert view.edits_made == ["pin 3 experts"]


def test_what_became_of_the_plan_stays_in_sight(tmp_path):
    view = explorer()
    view.show_error(ValueError("something else"))
    view._on_message(view, {"do": "save", "path": str(tmp_path / "p.json")}, [])
    assert (view.status, view.message) == ("error", "something else")
    assert view.note.startswith("Saved the plan as")
    view.full()
    assert view.wait()
    assert view.status == "ready"
    assert view.note.startswith("Saved the plan as")
    for path in ("", " "):
        view._on_message(view, {"do": "save", "path": path}, [])
        assert "expected one such as plan.json" in view.message
    view._on_message(view, {"do": "save"}, [])
    assert "expected one such as plan.json" in view.message


def test_no_button_fails_without_a_word(monkeypatch):
    view = explorer()
    for message, words in (
        ({"do": "query", "text": "tier > 2"}, "mixes texts and numbers"),
        ({"do": "query"}, "KeyError"),
        ({"do": "burn"}, "action is 'burn', expected one of pin"),
    ):
        view.say("ready")
        view._on_message(view, message, [])
        assert view.status == "error"
        assert words in view.message

    def held(self):
        raise RuntimeError("the engine generates: wait for its end")

    monkeypatch.setattr(PlacementExplorer, "apply", held)
    view._on_message(view, {"do": "apply"}, [])
    assert view.message == "RuntimeError: the engine generates: wait for its end"


def test_layer_of_a_query_is_the_number_on_the_map():
    trace = trace_of(1)
    header = trace.header.model_copy(update={"model_layer_of_layer": (1, 4, 9)})
    view = PlacementExplorer(replace(trace, header=header), machine_with(1), settings=Settings(4))
    assert view.layer_names == ["1", "4", "9"]
    view.query("layer == 4 and expert < 2")
    assert np.argwhere(view.chosen).tolist() == [[1, 0], [1, 1]]


def test_names_of_what_does_not_occur_are_left_out():
    view = explorer(settings_of=Settings(0, 2, 0.0, "round_robin"), num_nodes=2)
    assert view.map_layer("tier").names == ("", "node0", "node1", "", "")
    assert view.map_layer("node").names == ("node0", "node1", "", "")
    view.colour_by = "tier"
    assert "split" not in view.static_html()
    assert "node1" in view.static_html()


LOADED = """
import time
import numpy as np
import moelab
from moelab.exploration import Settings
from moelab.exploration.settings import policies
from moelab.policies import POLICIES
from moelab.widgets import PlacementExplorer
from tests.exploration.test_explore import machine_with, trace_of
view = PlacementExplorer(trace_of(1), machine_with(1), settings=Settings(4))
names = policies(1, view.exploration.trace.extras)
before = [name for name in names if POLICIES[name].decide.overloads]
view.warmth.join(500)
after = [name for name in names if POLICIES[name].decide.overloads]
assert not set(names) - set(after), set(names) - set(after)
assert len(before) < len(names) / 2, before
print("warm")
"""


def test_policies_are_loaded_before_they_are_chosen():
    """In a process of its own: here other tests have loaded them."""
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "warm" in done.stdout


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
