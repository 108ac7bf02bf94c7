"""TraceBrowser without a browser: what crosses equals the plain calls; text, states, the saved notebook."""

from __future__ import annotations

import dataclasses

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter

import moelab
from moelab.analysis.token_routes import WAYS, request_table, token_routes, token_values
from moelab.domain.trace import TokenTable
from moelab.widgets import TraceBrowser
from tests.seeded_traces import seeded_trace

WORDS = ["The", " quick", " brown", " fox", " j\u00fcmps", " <b>over</b>", " it", "."]


def decode(ids):
    """Ids below 8 are words; 8 and 9 are the two bytes of one letter."""
    data = b"".join(WORDS[i].encode() if i < 8 else "\u00e9".encode()[i - 8 : i - 7] for i in ids)
    return data.decode(errors="replace")


def trace_with_text():
    trace = seeded_trace(5, batch=2, unrouted=0.1)
    for request in np.unique(trace.tokens.request):
        rows = np.flatnonzero(trace.tokens.request == request)
        trace.tokens.token_id[rows] = np.resize([0, 1, 8, 9, 4, 5, 6, 7], len(rows))
    return trace


def test_what_crosses_is_what_the_plain_calls_say():
    trace = trace_with_text()
    view = TraceBrowser(trace, decode=decode)
    assert view.requests == request_table(trace).to_dict("records")
    for request in (0, 3):
        view.request = request
        for by in WAYS:
            view.by, view.layer, view.slot, view.expert = by, 2, 1, 7
            plain = token_values(trace, request, by, layer=2, slot=1, expert=7)
            np.testing.assert_array_equal(np.frombuffer(view.token_data, np.float32), plain.values)
            np.testing.assert_array_equal(view.values, plain.values)
            assert view.scale["label"] == plain.label
            assert view.scale.get("names", []) == list(plain.names)
        view.token = 4
        frame = token_routes(trace, request, 4)
        for layer in range(3):
            assert view.routes["experts"][layer] == frame[frame.layer == layer].expert.tolist()
    view.request = 1
    assert view.token == -1
    assert view.routes == {}
    ids = trace.tokens.token_id[trace.tokens.request == 1].tolist()
    assert "".join(view.pieces) == decode(ids)
    assert view.pieces[:5] == ["The", " quick", "", "\u00e9", " j\u00fcmps"], (
        "a letter stands at the token that ends it"
    )
    assert view.num_prompt == 5


def test_states():
    view = TraceBrowser()
    assert (view.status, view.pieces) == ("empty", [])
    assert "call show(trace)" in view.message
    view.show(seeded_trace(1))
    assert view.status == "ready"
    assert "keep_text=True" in view.message
    assert view.pieces[:3] == ["0 ", "1 ", "2 "]
    view.request = 77
    assert view.status == "error"
    assert "request is 77" in view.message
    view.request = 2
    assert view.status == "ready"
    view.layer = 50
    assert view.status == "error"
    view.layer = 1
    assert view.status == "ready"
    view.show(seeded_trace(1).take(slice(0, 0)))
    assert view.status == "empty"
    stored = TraceBrowser(moelab.open_trace(moelab.shipped("nano/capture")))
    assert len(stored.requests) == 144


def test_a_long_request_says_what_is_left_out():
    trace = seeded_trace(0, num_requests=1, decode_tokens=3200)
    view = TraceBrowser(trace)
    assert len(view.pieces) == 3000
    assert view.message.startswith("The first 3,000 of 3,205 tokens. Positions stand for the text")
    view.by = "step"
    assert view.message.startswith("The first 3,000 of 3,205 tokens."), "another colour keeps the note"


def test_a_note_is_of_the_request_that_is_shown():
    long, short = (seeded_trace(0, num_requests=1, decode_tokens=num) for num in (3200, 20))
    first_step = 1 + int(long.tokens.step[-1])
    after = dataclasses.replace(short.tokens, request=short.tokens.request + 1, step=short.tokens.step + first_step)
    tokens = TokenTable.concatenate([long.tokens, after])
    tokens = dataclasses.replace(tokens, token_id=np.zeros_like(tokens.token_id))
    both = [np.concatenate([getattr(each, name) for each in (long, short)]) for name in ("experts", "gate_weights")]
    view = TraceBrowser(moelab.Trace(long.header, *both, tokens), decode=decode)
    assert view.message == "The first 3,000 of 3,205 tokens."
    view.layer = 99
    assert view.status == "error"
    view.layer = 0
    assert (view.status, view.message) == ("ready", "The first 3,000 of 3,205 tokens."), "an error leaves it"
    view.request = 1
    assert (view.status, view.message) == ("ready", "")
    view.token = 777
    assert (view.status, view.routes) == ("error", {})
    view.token = 3
    assert (view.status, view.routes["token"]) == ("ready", 3)
    view.token = 777
    view.token = -1
    assert (view.status, view.routes) == ("ready", {})


def test_what_is_not_there_is_said():
    def broken(ids):
        raise OverflowError("out of range")

    trace = trace_with_text()
    view = TraceBrowser(trace, decode=broken)
    assert view.status == "ready"
    assert "decode raised OverflowError (out of range)" in view.message
    assert view.pieces[:2] == ["0 ", "1 "]
    view = TraceBrowser(moelab.Trace.from_arrays(trace.experts.astype(int), num_experts=12))
    view.by = "gate weight"
    assert "no gate weights" in view.message
    view.by = "expert"
    assert "no gate weights" not in view.message
    for wrong in ("folder", 3, trace.experts):
        with pytest.raises(TypeError, match=f"trace is {type(wrong).__name__}, expected a Trace or"):
            TraceBrowser(wrong)


def test_a_saved_notebook_shows_text_and_routes():
    view = TraceBrowser(trace_with_text(), decode=decode)
    view.token = 2
    data, metadata = view._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("view", outputs=[output])])
    )
    assert "&lt;b&gt;over" in page
    assert "<b>over" not in page
    assert page.count("background:rgb(") == len(view.pieces)
    assert f'<td style="text-align:left">{", ".join(map(str, view.routes["experts"][0]))}</td>' in page.replace(
        "'", '"'
    )
