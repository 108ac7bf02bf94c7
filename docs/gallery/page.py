"""page: an executed notebook as Markdown: its text, its code, what the code showed.

Figures, widgets and results that draw become pictures, other results and frames tables, everything else text. Does not
execute and does not draw: ``browser`` is asked for pictures.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any, Protocol

from nbformat import NotebookNode

from docs.gallery.browser import WIDTH
from docs.gallery.table_html import table_html

FIGURE, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
MOST_ROWS = 40
"""Of a table that stands open on the page."""

_PROGRESS = re.compile(r"\d+%\||\d+it \[")
_FIRST_TIME = re.compile(r"moelab: compiling for this CPU.*\n?")


class Draws(Protocol):
    """Who draws: bytes of a WebP file."""

    def figure(self, figure: dict[str, Any]) -> bytes: ...
    def html(self, markup: str) -> bytes: ...


def page(notebook: NotebookNode, name: str, ran: str, draws: Draws) -> tuple[str, dict[str, bytes]]:
    """(Markdown, bytes of each picture by its file name); ``ran`` says when and on what."""
    pictures: dict[str, bytes] = {}
    parts = [
        "<!-- Made by `python -m docs.gallery`; edit the notebook. -->\n",
        f"[Gallery](README.md) · [notebook](../../notebooks/{name}.ipynb) · {ran}\n",
    ]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source + "\n")
            continue
        parts.append(f"```python\n{cell.source}\n```\n")
        for output in cell.outputs:
            parts += [shown + "\n" for shown in _shown(output, f"{name}-{len(pictures) + 1}.webp", pictures, draws)]
    return "\n".join(parts), pictures


def _shown(output: NotebookNode, file: str, pictures: dict[str, bytes], draws: Draws) -> list[str]:
    """What one output becomes; a picture is added to ``pictures`` under ``file``."""
    if output.output_type == "stream":
        text = _FIRST_TIME.sub("", output.text)
        return [f"```text\n{text.rstrip()}\n```"] if text.strip() and not _PROGRESS.search(text) else []
    data = output.data
    if FIGURE in data:
        pictures[file] = draws.figure(data[FIGURE])
        return [_image(file, _title(data[FIGURE]))]
    markup = data.get("text/html", "")
    if WIDGET in data and not markup:
        if not _PROGRESS.search(data.get("text/plain", "")):
            raise ValueError(f"a widget has no static picture, expected text/html beside {data.get('text/plain')}")
        return []  # a progress bar
    if WIDGET in data or "<svg" in markup or "<img" in markup:
        pictures[file] = draws.html(markup)
        return [_image(file, data["text/plain"].splitlines()[0])]
    if markup:
        markup = table_html(markup)
        rows = markup.count("<tr>")
        return [f"<details><summary>{rows} rows</summary>\n{markup}\n</details>" if rows > MOST_ROWS else markup]
    return [f"```text\n{data['text/plain']}\n```"]


def _image(file: str, words: str) -> str:
    return f'<img src="pictures/{file}" width="{WIDTH}" alt="{escape(words, quote=True)}">'


def _title(figure: dict[str, Any]) -> str:
    """A figure's title without markup."""
    title = figure["layout"].get("title", {})
    text = title.get("text", "") if isinstance(title, dict) else title
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text or "")).strip() or "figure"
