"""Two threads and one widget: nothing of old work comes after its end, and states of one are not sent by the other."""

from __future__ import annotations

import threading
import time

import pytest

from moelab.widgets import ExpertMap
from moelab.widgets.background import Background

WAIT_S = 60


def in_thread(call):
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_nothing_is_shown_after_cancel_has_returned():
    showing, go_on, shown = threading.Event(), threading.Event(), []

    def show(what, share):
        showing.set()
        go_on.wait(WAIT_S)
        shown.append(time.monotonic())

    background = Background(show)
    show_result = lambda result: shown.append(time.monotonic())  # noqa: E731
    background.start(lambda report: [report("old", n / 9) for n in range(9)], show_result, show_result)
    assert showing.wait(WAIT_S)
    ended = []
    cancelling = in_thread(lambda: (background.cancel(), ended.append(time.monotonic())))
    cancelling.join(0.2)
    go_on.set()
    cancelling.join(WAIT_S)
    assert background.wait(WAIT_S)
    assert shown
    assert max(shown) <= ended[0]


@pytest.mark.parametrize("ends_well", [True, False])
def test_no_result_comes_after_newer_work_was_started(ends_well):
    """The old work is over and its result is just taken: who starts anew waits for that, and is not overwritten."""
    taking, go_on, order = threading.Event(), threading.Event(), []

    def take(result):
        taking.set()
        go_on.wait(WAIT_S)
        order.append("old")

    def work(report):
        if not ends_well:
            raise ValueError("broken")

    background = Background(lambda what, share: None)
    background.start(work, take, take)
    assert taking.wait(WAIT_S)
    starting = in_thread(
        lambda: (background.start(lambda report: None, lambda result: order.append("new"), take), order.append("begun"))
    )
    starting.join(0.2)
    go_on.set()
    starting.join(WAIT_S)
    assert background.wait(WAIT_S)
    assert order[0] == "old"
    assert sorted(order[1:]) == ["begun", "new"]


def test_who_holds_the_widget_can_wait_for_its_work():
    view = ExpertMap([[1.0, 2.0]])
    background = Background(lambda what, share: None, view.lock)

    def done(result):
        with view.hold_sync():
            view.message = result

    with view.hold_sync():
        background.start(lambda report: "done", done, done)
        assert background.wait(WAIT_S)
        assert view.message == "done"


@pytest.mark.parametrize("other", ["hold_sync", "set_state"])
def test_one_thread_at_a_time_changes_a_widget(other):
    view, order = ExpertMap([[1.0, 2.0]]), []

    def change():
        if other == "set_state":
            view.set_state({"selection": memoryview(b"\x01\x00")})
        else:
            with view.hold_sync():
                pass
        order.append("other")

    with view.hold_sync():
        thread = in_thread(change)
        thread.join(0.2)
        order.append("first")
    thread.join(WAIT_S)
    assert order == ["first", "other"]
