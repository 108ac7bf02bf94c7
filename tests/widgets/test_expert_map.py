"""The map without a browser: what crosses, what is chosen, and what a saved notebook shows in its place."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter

from moelab.palette import PALETTE, VIRIDIS, rgb_of, viridis
from moelab.widgets import ExpertMap
from moelab.widgets.expert_map import EDITED, PINNED
from moelab.widgets.static_picture import UNKNOWN, map_colours, map_html, png


@pytest.mark.parametrize("seed", range(3))
def test_one_binary_trait_holds_the_map(seed):
    rng = np.random.default_rng(seed)
    layers, experts = (int(n) for n in rng.integers(1, 40, 2))
    values = rng.random((layers, experts))
    order = np.stack([rng.permutation(experts) for _ in range(layers)])
    marks = rng.choice([0, PINNED, EDITED], (layers, experts))
    view = ExpertMap(values)
    view.show(values, order=order, marks=marks)
    cells = layers * experts
    assert len(view.map_data) == 7 * cells
    got = np.frombuffer(view.map_data[: 4 * cells], np.float32).reshape(layers, experts)
    ids = np.frombuffer(view.map_data[4 * cells : 6 * cells], np.uint16).reshape(layers, experts)
    bits = np.frombuffer(view.map_data[6 * cells :], np.uint8).reshape(layers, experts)
    for layer in range(layers):
        for place in range(experts):
            expert = order[layer, place]
            assert got[layer, place] == np.float32(values[layer, expert])
            assert ids[layer, place] == expert
            assert bits[layer, place] == marks[layer, expert]
    assert view.values.dtype == np.float32
    np.testing.assert_array_equal(view.values, values.astype(np.float32))


def test_choice():
    view = ExpertMap(np.arange(12.0).reshape(3, 4))
    assert view.status == "ready"
    mask = view.values > 6
    view.choose(mask)
    np.testing.assert_array_equal(view.chosen, mask)
    assert view.num_selected == 5
    view.set_state({"selection": memoryview(bytes([1] + [0] * 11))})  # as a browser's buffer arrives
    assert np.argwhere(view.chosen).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match=r"mask is \(4, 3\), expected layers x experts \(3, 4\)"):
        view.choose(mask.T)


def test_states_and_errors():
    view = ExpertMap()
    assert view.status == "empty"
    assert "call show(values)" in view.message
    with pytest.raises(ValueError, match="expected \\[layers, experts\\]"):
        view.show(np.zeros(3))
    with pytest.raises(ValueError, match="order is"):
        view.show(np.zeros((2, 3)), order=np.zeros((3, 2), int))
    view.show_error(KeyError("x"))
    assert view.status == "error"
    assert view.message == "KeyError: 'x'"


def decoded(data: bytes) -> np.ndarray:
    """Pixels of an 8-bit RGB or palette file without filters, by the letter of the standard; checksums are checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        parts[kind] = body
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    assert depth == 8
    assert colour in (2, 3)
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(
        height, 1 + (3 if colour == 2 else 1) * width
    )
    assert not rows[:, 0].any()
    if colour == 3:
        return np.frombuffer(parts[b"PLTE"], np.uint8).reshape(-1, 3)[rows[:, 1:]]
    return rows[:, 1:].reshape(height, width, 3)


def test_picture_of_a_saved_notebook():
    """nbconvert, where no kernel runs, shows the picture and its scale."""
    values = np.random.default_rng(0).random((5, 9))
    values[2, 3] = np.nan
    view = ExpertMap(values, label="load <b>")
    data, _ = view._repr_mimebundle_()
    cell = nbformat.v4.new_code_cell("view", outputs=[nbformat.v4.new_output("display_data", data=data)])
    page, _ = HTMLExporter(sanitize_html=False).from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    found = re.search(r"src=.data:image/png;base64,([A-Za-z0-9+/=]+). style", page)
    assert found, "no static picture in the page"
    pixels = decoded(base64.b64decode(found.group(1)))
    colours = map_colours(values.astype(np.float32), view.scale)
    np.testing.assert_allclose(pixels.astype(int), colours.astype(int), atol=2)
    assert pixels[2, 3].tolist() == list(UNKNOWN)
    assert "load &lt;b&gt;: dark" in page
    assert "load" in data["text/plain"]
    assert len(str(data)) < 20_000


def test_picture_of_the_largest_map_stays_small():
    """93 x 896 of noise, the worst case; many colours still make a right file."""
    values = np.random.default_rng(1).random((93, 896))
    html = map_html(values, {"kind": "continuous", "label": "x", "low": 0.0, "high": 1.0}, "noise")
    assert len(html) < 125_000
    many = np.random.default_rng(2).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(png(many)), many)


def test_colours():
    """The ends and a middle of the scale, categories, and light that only grows: so grey prints are read too."""
    assert viridis(np.array(0.0)).tolist() == list(rgb_of(VIRIDIS[0]))
    assert viridis(np.array([2.0]))[0].tolist() == list(rgb_of(VIRIDIS[-1]))
    light = viridis(np.linspace(0, 1, 50)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()
    shown = map_colours(np.array([[0.0, 1.0]]), {"kind": "categories", "label": "node", "names": ["a", "b"]})
    assert shown[0].tolist() == [list(rgb_of(PALETTE[0])), list(rgb_of(PALETTE[1]))]
    assert decoded(png(shown)).tolist() == shown.tolist()
