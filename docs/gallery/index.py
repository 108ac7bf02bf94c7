"""index: the gallery's first page: of each notebook its question and a picture of its page."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

_IMAGE = re.compile(r'<img src="(pictures/[^"]+)"[^>]*alt="([^"]*)"')
_HEAD = """<!-- Made by `python -m docs.gallery`. -->

# Gallery

Every notebook of `notebooks/` with what it showed when it was last run; machine and date stand on each page. Widgets
are live in JupyterLab; here are the pictures that a saved notebook shows in their place.

| | question |
|---|---|
"""


def index(notebooks: Path, pages: Path) -> str:
    """Markdown; raises ``ValueError`` where a notebook has no page yet."""
    rows = []
    for path in sorted(notebooks.glob("*.ipynb")):
        name, page = path.stem, pages / f"{path.stem}.md"
        if not page.is_file():
            raise ValueError(f"{name} has no page: python -m docs.gallery {name}")
        cells = nbformat.read(path, as_version=4).cells
        title, _, question = cells[0].source.splitlines()[:3]
        image = _thumbnail(cells, page.read_text(encoding="utf-8"))
        thumbnail = f'<a href="{name}.md"><img src="{image[1]}" width="260" alt="{image[2]}"></a>' if image else ""
        rows.append(
            f"| {thumbnail} | [{title.removeprefix('# ')}]({name}.md)<br>{question.removeprefix('**Question:** ')} |"
        )
    return _HEAD + "\n".join(rows) + "\n"


def _thumbnail(cells: list[nbformat.NotebookNode], text: str) -> re.Match[str] | None:
    """The picture of the cell whose metadata have the tag ``thumbnail``, else the first one."""
    tagged = next((cell.source for cell in cells if "thumbnail" in cell.metadata.get("tags", ())), "")
    return _IMAGE.search(text, max(0, text.find(tagged))) or _IMAGE.search(text)
