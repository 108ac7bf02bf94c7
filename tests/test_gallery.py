"""The gallery in the docs shows the notebooks as they are, is whole and small, and names no place of a machine."""

import base64
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from docs.gallery.browser import SCALE, WIDTH, Browser
from docs.gallery.check import NOTEBOOKS, PAGES, problems
from docs.gallery.index import index
from docs.gallery.neutral import ROOT, neutral, places
from docs.gallery.page import page
from docs.gallery.table_html import table_html
from tests.widgets.screenshot import pixels

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def test_nothing_is_wrong():
    """Each sentence says which command mends it."""
    assert problems() == []


def test_every_notebook_is_shown_with_its_question():
    """Not by the gallery's own code: code cell by code cell, and one row of the index each."""
    rows = [line for line in (PAGES / "README.md").read_text().splitlines() if line.startswith("| <a")]
    assert len(rows) == len(NAMES) >= 7
    for name, row in zip(NAMES, rows, strict=True):
        notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
        page_text = (PAGES / f"{name}.md").read_text()
        code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for ours, theirs in zip(code, page_text.split("```python\n")[1:], strict=True):
            assert theirs.startswith(ours + "\n```\n")
        question = "".join(notebook["cells"][0]["source"]).splitlines()[2].removeprefix("**Question:** ")
        assert question in row
        picture = PAGES / re.search(r'src="([^"]+)"', row)[1]
        assert picture.read_bytes()[:4] == b"RIFF"
        assert re.search(r"run on \d{4}-\d\d-\d\d in \d+ s: \S", page_text)


@pytest.fixture
def copy(tmp_path):
    """(notebooks, pages): a gallery that may be damaged."""
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    shutil.copytree(PAGES, tmp_path / "pages", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path / "notebooks", tmp_path / "pages"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_changed_cell_is_noticed(copy):
    notebooks, _ = copy
    assert problems(*copy) == []
    edit(notebooks / "03_simulate.ipynb", "slots_per_layer=10", "slots_per_layer=11")
    assert problems(*copy) == [
        "03_simulate.md differs from its notebook in code cell 2: python -m docs.gallery 03_simulate"
    ]
    edit(notebooks / "03_simulate.ipynb", "slots_per_layer=11", "slots_per_layer=10")
    edit(notebooks / "04_plan.ipynb", "decides how long a step takes", "decides")
    assert problems(*copy) == [
        "04_plan.md differs from its notebook in the text of cell 1: python -m docs.gallery 04_plan"
    ]


def test_cells_and_pages_that_come_and_go_are_noticed(copy):
    notebooks, pages = copy
    path = notebooks / "02_analyse.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(2, nbformat.v4.new_code_cell("1 + 1"))
    nbformat.write(notebook, path)
    assert any("code cells, its notebook" in each for each in problems(*copy))
    (pages / "02_analyse.md").unlink()
    assert any("02_analyse has no page" in each for each in problems(*copy))
    path.unlink()
    (pages / "README.md").write_text(index(*copy))
    assert {each.split("-")[0] for each in problems(*copy)} == {"02_analyse"}, "its pictures are on no page"


def test_a_missing_a_spare_and_a_large_picture_are_noticed(copy):
    pictures = copy[1] / "pictures"
    one = sorted(pictures.glob("01_*"))[0]
    one.rename(pictures / "spare.webp")
    assert sum("lacks its picture" in each for each in problems(*copy)) >= 1
    assert "spare.webp is on no page: delete it" in problems(*copy)
    (pictures / "spare.webp").rename(one)
    one.write_bytes(bytes(200_000))
    assert any("200,000 bytes" in each for each in problems(*copy))


@pytest.mark.parametrize(
    "text",
    [
        f"trace {ROOT}/traces/nano", "written to /tmp/tmpab12/my_trace", "/home/anna/x", "C:\\Users\\anna\\x.json",
        "'/Users/anna/moelab'", "file:///home/anna/x", str(Path.home() / "x"),
    ],
)  # fmt: skip
def test_a_place_of_a_machine_is_noticed(copy, text):
    """In prose, in quotation marks, in a table."""
    page_file = copy[1] / "05_apply.md"
    for written in (f"so: {text} is it", f'"{text}"', f"<td>{text}</td>"):
        before = page_file.read_text()
        page_file.write_text(before + written)
        assert any("says where it was made" in each for each in problems(*copy)), written
        page_file.write_text(before)


@pytest.mark.parametrize("text", ["12 tok/s, GB/s/node", "../shared/traces", "traces/nano/model", "1/16", "a/home/b"])
def test_what_is_no_place_is_left_alone(text):
    assert places(text) == []


def test_paths_within_the_project_become_relative():
    assert neutral({"a": [f"x {ROOT}/traces/nano", 3]}) == {"a": ["x traces/nano", 3]}


def test_host_and_user_are_found_and_hosts_renamed(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "kepler-12.lab.example")
    monkeypatch.setattr("getpass.getuser", lambda: "johannes")
    assert neutral("machine kepler-12.lab.example") == "machine this-machine"
    assert places("by johannes") == ["johannes"]
    assert places("on kepler-12") == ["kepler-12"]
    assert places("kepler-123 is another") == []


class Draws:
    """Stands in for the browser: names what it was asked for."""

    def figure(self, figure):
        return f"figure of {len(figure['data'])}".encode()

    def html(self, markup):
        return markup.encode()


def output(kind, **data):
    return nbformat.v4.new_output(kind, data={name.replace("__", "/"): value for name, value in data.items()})


def test_every_kind_of_output():
    frame = (
        '<div><style scoped>.dataframe {x: y}</style><table border="1" class="dataframe"><tr style="q"><th>a</th></tr>'
        '\n\n<tr><td colspan="2">1 &lt; 2</td></tr></table></div>'
    )
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    outputs = [
        nbformat.v4.new_output("stream", text="moelab: compiling for this CPU, once; a while\nhello\n"),
        nbformat.v4.new_output("stream", text=" 20%|##    | 1/5"),
        output("execute_result", **{"text/html": frame, "text/plain": "a"}),
        output("execute_result", **{"text/plain": "{'x': 1}"}),
        nbformat.v4.new_output(
            "display_data",
            data={"application/vnd.plotly.v1+json": {"data": [1, 2], "layout": {"title": {"text": 'Read<br>s "q"'}}}},
        ),
        nbformat.v4.new_output("display_data", data={**widget, "text/plain": "  0%|   | 0/5"}),
        nbformat.v4.new_output(
            "display_data", data={**widget, "text/plain": "TraceBrowser\n  a: 1", "text/html": "<svg/>"}
        ),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# T"), nbformat.v4.new_code_cell("x = 1", outputs=outputs)]
    )
    text, pictures = page(notebook, "09_x", "run on a day", Draws())
    assert pictures == {"09_x-1.webp": b"figure of 2", "09_x-2.webp": b"<svg/>"}
    shown = text.split("```python\nx = 1\n```\n")[1]
    expected = (
        '```text hello ``` <table><tr><th>a</th></tr> <tr><td colspan="2">1 &lt; 2</td></tr></table> '
        "```text {'x': 1} ``` "
        '<img src="pictures/09_x-1.webp" width="860" alt="Read s &quot;q&quot;"> '
        '<img src="pictures/09_x-2.webp" width="860" alt="TraceBrowser">'
    )
    assert " ".join(shown.split()) == expected
    assert "\n\n<tr>" not in shown, "an empty line ends HTML in Markdown"


def test_a_long_table_is_folded():
    markup = "<table>" + "<tr><td>1</td></tr>" * 60 + "</table>"
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("x", outputs=[output("display_data", **{"text/html": markup})])]
    )
    assert "<details><summary>60 rows</summary>" in page(notebook, "x", "", Draws())[0]


def test_nothing_is_lost_without_a_word():
    with pytest.raises(ValueError, match=r"output has <canvas>, expected b, br"):
        table_html("<b>x</b><canvas></canvas>")
    bare = output("display_data", **{"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Button()"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[bare])])
    with pytest.raises(ValueError, match="a widget has no static picture"):
        page(notebook, "x", "", Draws())


_SHOW = """data => new Promise(done => {
  const image = document.createElement("img");
  image.onload = () => done([image.naturalWidth, image.naturalHeight]);
  image.src = "data:image/webp;base64," + data;
  document.body.replaceChildren(image);
})"""


@pytest.mark.browser
def test_pictures_show_what_they_are_given():
    """A red bar and a blue box, found again in the decoded pictures."""
    with ThreadPoolExecutor(1) as thread:  # where tests of widgets have not left a Playwright open
        thread.submit(_check_pictures).result()


def _check_pictures():
    bar = {"type": "bar", "x": ["a"], "y": [1], "marker": {"color": "#ff0000"}}
    with Browser() as browser:
        red = browser.figure({"data": [bar], "layout": {"height": 300}})
        blue = browser.html("<div style='width:200px;height:120px;background:#0000ff'></div>")
        viewer = browser._html.context.new_page()
        for data, colour, height in ((red, (255, 0, 0), 300), (blue, (0, 0, 255), 136)):
            assert data[:4] == b"RIFF"
            assert len(data) < 30_000
            size = viewer.evaluate(_SHOW, base64.b64encode(data).decode())
            assert size == [round(WIDTH * SCALE), round(height * SCALE)]
            seen = pixels(viewer.locator("img").screenshot(type="png")).reshape(-1, 3)
            assert (abs(seen - colour).max(1) < 25).mean() > 0.1
