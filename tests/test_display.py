"""What results show of themselves: an HTML table in a notebook, the same as text elsewhere; one look of pictures."""

import html
import re
from pathlib import Path

import numpy as np
import plotly.io as pio
import pytest

import moelab
from moelab import plots
from moelab.domain.trace import TraceHeader
from moelab.palette import PALETTE
from tests.seeded_traces import plan_for, seeded_trace


@pytest.fixture(scope="module")
def results():
    trace = seeded_trace(1)
    plan = plan_for(trace, "lru", slots_per_layer=4)
    nano = moelab.open_trace(moelab.shipped("nano/capture")).load(slice(0, 400))
    return {
        "Trace": trace,
        "Plan": plan,
        "Machine": moelab.Machine.preset("forge-moe-gen4"),
        "SimResult": moelab.simulate(trace, plan, progress=False),
        "ReplayResult": moelab.replay(
            nano, moelab.PLANNERS["frequency"](nano, slots_per_layer=4), tokens=4, expert_shape="own", progress=False
        ),
    }


def words_of(markup):
    """Text of an HTML table, cell by cell; what is folded away stays out, as in text."""
    markup = re.sub(r"<details>.*?</details>", "", markup, flags=re.DOTALL)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", markup, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]+>", " ", cell)).strip() for cell in cells]


@pytest.mark.parametrize("name", ["Trace", "Plan", "Machine", "SimResult", "ReplayResult"])
def test_html_and_text_say_the_same(results, name):
    result = results[name]
    markup, text = result._repr_html_(), repr(result)
    assert "<table" in markup
    assert "<script" not in markup
    assert "object at 0x" not in text
    said = re.sub(r"\s+", " ", text)
    there = [word for word in words_of(markup) if word]
    assert len(there) > 8
    missing = [word for word in there if re.sub(r"\s+", " ", word) not in said]
    assert len(missing) <= len(there) // 4, f"text of {name} lacks {missing}"


def test_names_of_others_are_escaped(results):
    trace = results["Trace"]
    evil = TraceHeader.model_validate(trace.header.model_dump() | {"model": "<img src=x onerror=alert(1)>"})
    shown = moelab.Trace(evil, trace.experts, trace.gate_weights, trace.tokens)._repr_html_()
    assert "<img" not in shown
    assert "&lt;img" in shown


def test_pictures_have_one_template_and_palette():
    """Every function of `moelab.plots` draws with the registered template; other colours are the palette's or grey."""
    assert list(pio.templates["moelab"].layout.colorway) == list(PALETTE)
    folder = Path(plots.__file__).parent
    drawn = [folder / f"{name}.py" for name in plots.__all__ if name not in {"PALETTE", "TEMPLATE"}]
    assert len(drawn) >= 13
    for file in drawn:
        source = file.read_text()
        assert "template=TEMPLATE" in source, file.name
        for colour in re.findall(r'"(#[0-9a-fA-F]{3,6})"', source):
            digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
            grey = len({digits[i : i + 2].lower() for i in (0, 2, 4)}) == 1
            assert grey or colour.upper() in PALETTE, f"{file.name}: {colour}"


def test_the_palette_is_told_apart_by_colour_blind_readers():
    """Machado, Oliveira and Fernandes (2009), severity 1: any two colours stay apart for each kind of reader."""
    seen = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }  # fmt: skip
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for kind, matrix in seen.items():
        turned = np.clip(linear @ np.array(matrix).T, 0, 1)
        lab = _lab(turned)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(len(PALETTE), 1)]
        assert apart.min() > 9, f"{kind}: {apart.min():.1f}"


def _lab(linear):
    """CIE L*a*b* of linear sRGB, D65."""
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    scaled = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)
