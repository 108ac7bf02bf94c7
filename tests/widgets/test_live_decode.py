"""LiveDecode without a browser: what crosses equals the twin's numbers; stop, plans, errors, the saved notebook."""

import subprocess
import sys
import threading
import time

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter

import moelab
from moelab.exploration import homes_of_engine
from moelab.planner.empty import empty
from moelab.widgets import LiveDecode
from moelab.widgets.live_decode import SECONDS_BETWEEN_MESSAGES

PROMPT = "In the beginning there was a small machine that"
WAIT_S = 300


@pytest.fixture(scope="module")
def engine():
    with moelab.load(moelab.shipped("nano/model"), virtual_nodes=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def plans():
    capture = moelab.open_trace(moelab.shipped("nano/capture")).load()
    shared = {"nodes": 2, "held_out": 0.5, "phase": "decode"}
    return {name: moelab.PLANNERS[name](capture, **shared) for name in ("round_robin", "mirror")}


def values_of(view):
    count = view.num_layers * view.num_experts
    return np.frombuffer(view.map_data[: 4 * count], np.float32).reshape(view.num_layers, view.num_experts)


def press(view, action, **content):
    view._on_message(view, {"do": action, **content}, [])


def finish(view):
    assert view.wait(WAIT_S)
    assert view.doing == ""


def test_what_crosses_is_what_the_twin_counts(engine):
    view = LiveDecode(engine)
    assert (view.status, view.doing) == ("ready", "")
    assert not values_of(view).any()
    press(view, "generate", prompt=PROMPT, max_new_tokens=30, temperature=0.8, seed=3)
    finish(view)
    expected = engine.generate(PROMPT, 30, temperature=0.8, seed=3)
    assert view.text == expected.text == view.run.text
    assert list(view.run.result.token_ids) == list(expected.token_ids)
    assert view.figures | view.run.figures() == view.figures
    assert view.runs == [view.figures]
    np.testing.assert_array_equal(values_of(view), view.run.glow)
    assert (values_of(view) == 1).sum(axis=1).tolist() == [4] * 6
    view.colour_by = "uses"
    np.testing.assert_array_equal(values_of(view), view.run.uses)
    view.colour_by = "home"
    np.testing.assert_array_equal(values_of(view), homes_of_engine(engine).values)
    assert f"after {view.run.num_steps} tokens" in view.message


def test_messages_are_about_ten_a_second(engine):
    view = LiveDecode(engine, prompt=PROMPT)
    view.max_new_tokens = 150
    seen = []
    view.observe(lambda change: seen.append((time.monotonic(), change["new"])), "num_messages")
    begin = time.monotonic()
    view.generate()
    finish(view)
    counts = [(at, count) for at, count in seen if count]
    assert view.num_messages == len(counts) > 1
    assert len(counts) <= 1 + (time.monotonic() - begin) / SECONDS_BETWEEN_MESSAGES


def test_stop_ends_it_within_a_token(engine):
    view = LiveDecode(engine, prompt=PROMPT)
    view.max_new_tokens = 100_000
    after_stop = []
    begun = threading.Event()

    def watch(*step):
        if view.run.num_steps >= 8:
            begun.set()
        if view.run._stop.is_set():
            after_stop.append(step[0])

    engine.observers.append(watch)
    try:
        view.generate()
        assert begun.wait(WAIT_S)
        with pytest.raises(ValueError, match="still generating"):
            view.generate()
        press(view, "generate", prompt="another", max_new_tokens=3)
        assert view.prompt == PROMPT, "a form that comes while it generates changes nothing"
        press(view, "stop")
        finish(view)
    finally:
        engine.observers.remove(watch)
    assert len(after_stop) <= 1
    assert view.figures["finished_by"] == "cancelled"
    assert "Stopped after" in view.message
    assert view.status == "ready"


def test_a_plan_between_two_prompts(engine, plans):
    view = LiveDecode(engine, plans, prompt=PROMPT)
    view.max_new_tokens = 20
    assert view.plan_names == ["round_robin", "mirror"]
    assert view.chosen_plan == "round_robin"
    view.generate()
    finish(view)
    press(view, "apply", plan="mirror")
    finish(view)
    assert view.plan_in_use == "mirror"
    assert "copies added" in view.message
    view.colour_by = "home"
    assert set(values_of(view).ravel()) == {3.0}, "several nodes"
    press(view, "apply", plan="round_robin")
    finish(view)
    assert set(values_of(view).ravel()) == {1.0, 2.0}
    view.generate()
    finish(view)
    first, second = view.runs
    assert (first["plan"], second["plan"]) == ("as loaded", "round_robin")
    assert second["text"] == "same as 1"
    assert sum(first["bytes_per_token_of_node"]) == pytest.approx(sum(second["bytes_per_token_of_node"]))
    assert min(second["bytes_per_token_of_node"]) > 0
    view.add_plan("fast", empty(engine.trace_header(), slots_per_layer=8, policy="lru"))
    view.apply("fast")
    finish(view)
    try:
        view.generate()
        finish(view)
        assert view.figures["uploads"] + view.figures["prefill_uploads"] == engine.fast_tier.report().uploads > 0
        assert (values_of(view) == 0).sum() == engine.fast_tier.resident.sum()
    finally:
        engine.use_plan(None)


def test_errors_say_what_to_do(engine, plans):
    empty_view = LiveDecode()
    assert empty_view.status == "empty"
    assert "moelab.load" in empty_view.message
    assert "moelab.load" in empty_view.static_html()
    press(empty_view, "generate", prompt="x")
    assert "no engine" in empty_view.message
    view = LiveDecode(engine, plans)
    press(view, "generate", prompt="  ")
    assert (view.status, view.doing) == ("error", "")
    assert "write one and press Generate" in view.message
    press(view, "generate", prompt="x", max_new_tokens=0)
    assert (view.status, view.doing) == ("error", "")
    press(view, "apply", plan="none such")
    assert "expected one of ['round_robin', 'mirror']" in view.message
    other = plans["mirror"]
    other = other.model_copy(update={"model": other.model.model_copy(update={"name": "another", "num_experts": 47})})
    view.add_plan("of another", other)
    view.apply("of another")
    finish(view)
    assert view.status == "error"
    assert "another" in view.message
    assert view.plan_in_use == "as loaded"
    with moelab.load(moelab.shipped("nano/model")) as closed:
        late = LiveDecode(closed, prompt=PROMPT)
    late.generate()
    finish(late)
    assert late.status == "error"
    assert "closed" in late.message


def test_the_engine_elsewhere_and_ctrl_c(engine):
    view = LiveDecode(engine, prompt=PROMPT)
    view.max_new_tokens = 100_000
    view.generate()
    while not view.run.num_steps:
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match=r"engine of nano is busy.*LiveDecode"):
        engine.generate("x", 2)

    def interrupted(timeout_s=None):
        view._background.wait = wait
        raise KeyboardInterrupt

    wait, view._background.wait = view._background.wait, interrupted
    with pytest.raises(KeyboardInterrupt):
        view.wait()
    finish(view)
    assert view.figures["finished_by"] == "cancelled"
    view.generate()
    view.close()
    assert view.run.result is not None, "closing it ends the thread"
    assert len(engine.generate("x", 2).token_ids) > 0


def test_python_exits_while_it_generates():
    """As at a kernel's restart: no hang and no crash of a thread that is inside the kernels."""
    code = (
        "import moelab, time\nfrom moelab.widgets import LiveDecode\n"
        "view = LiveDecode(moelab.load(moelab.shipped('nano/model')), prompt='Once')\n"
        "view.max_new_tokens = 10**6\nview.generate()\n"
        "while view.run.num_steps < 3: time.sleep(0.01)\nprint('leaving')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout.strip()) == (0, "leaving"), done.stderr[-2000:]


def test_a_saved_notebook_shows_text_map_and_figures(engine):
    view = LiveDecode(engine, prompt="<i>Once</i> upon")
    view.max_new_tokens = 12
    view.generate()
    finish(view)
    data, metadata = view._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    cell = nbformat.v4.new_code_cell("view", outputs=[output])
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "&lt;i&gt;Once" in page
    assert "<i>Once" not in page
    assert "data:image/png" in page
    assert "gb_per_s_of_node" in page
    assert len(data["text/html"]) < 50_000
    assert "decode_tok_per_s" in repr(view)


def test_prompts_of_token_ids_are_compared_by_their_ids(engine):
    view = LiveDecode(engine)
    view.max_new_tokens = 8
    for ids in ([5, 6, 7, 8], [50, 61, 72], [5, 6, 7, 8]):
        view.generate(ids)
        finish(view)
    assert [run["prompt"] for run in view.runs] == ["4 token ids", "3 token ids", "4 token ids"]
    assert [run["text"] for run in view.runs] == ["", "", "same as 1"]


def test_a_setting_changed_meanwhile_is_not_what_was_asked(engine):
    view = LiveDecode(engine, prompt=PROMPT)
    view.max_new_tokens = 12
    view.generate()
    view.prompt, view.max_new_tokens = "something else", 5
    finish(view)
    assert view.figures["prompt"] == PROMPT[:60]
    view.generate(PROMPT)
    finish(view)
    assert view.figures["text"] == "", "another number of tokens was asked for"
