"""check: is the gallery what the notebooks are, whole, small, and silent about the machine it was made on?"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

from docs.gallery.index import index
from docs.gallery.neutral import ROOT, places

NOTEBOOKS, PAGES = ROOT / "notebooks", ROOT / "docs" / "gallery"
PICTURES = PAGES / "pictures"
MOST_BYTES, MOST_BYTES_OF_PICTURE = 2_000_000, 100_000

_CODE = re.compile(r"^```python\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
_PICTURE = re.compile(r'src="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)')


def problems(notebooks: Path = NOTEBOOKS, pages: Path = PAGES) -> list[str]:
    """What is wrong, one sentence each with what to do; empty where nothing is."""
    found: list[str] = []
    names = [path.stem for path in sorted(notebooks.glob("*.ipynb"))]
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(pages.glob("*.md"))}
    for name in sorted(set(texts) - {*names, "README"}):
        found.append(f"{name}.md has no notebook: delete it and its pictures")
    for name in names:
        if name not in texts:
            found.append(f"{name} has no page: python -m docs.gallery {name}")
        else:
            found += [
                f"{say}: python -m docs.gallery {name}" for say in _stale(notebooks / f"{name}.ipynb", texts[name])
            ]
    if "README" not in texts or (set(names) <= set(texts) and texts["README"] != index(notebooks, pages)):
        found.append("README.md is not the index of these notebooks and pages: python -m docs.gallery")
    wanted: set[Path] = set()
    for name, text in texts.items():
        found += [f"{name}.md says where it was made, {place}: mend what prints it" for place in places(text)]
        mentioned = {pages / (a or b) for a, b in _PICTURE.findall(text)}
        found += [f"{name}.md lacks its picture {each.name}: make it again" for each in mentioned if not each.is_file()]
        wanted |= mentioned
    files = sorted((pages / "pictures").glob("*"))
    found += [f"{file.name} is on no page: delete it" for file in files if file not in wanted]
    sizes = {file.name: file.stat().st_size for file in files}
    found += [
        f"{name} has {size:,} bytes, expected at most {MOST_BYTES_OF_PICTURE:,}: draw less"
        for name, size in sizes.items()
        if size > MOST_BYTES_OF_PICTURE
    ]
    whole = sum(sizes.values()) + sum(len(text.encode()) for text in texts.values())
    if whole > MOST_BYTES:
        found.append(f"the gallery has {whole:,} bytes, expected at most {MOST_BYTES:,}: draw less")
    return found


def _stale(path: Path, text: str) -> list[str]:
    """Where a page holds other code or text than its notebook."""
    cells = nbformat.read(path, as_version=4).cells
    code, shown = [cell.source for cell in cells if cell.cell_type == "code"], _CODE.findall(text)
    if len(code) != len(shown):
        return [f"{path.stem}.md has {len(shown)} code cells, its notebook {len(code)}"]
    found = [
        f"{path.stem}.md differs from its notebook in code cell {number}"
        for number, (ours, theirs) in enumerate(zip(code, shown, strict=True), 1)
        if ours != theirs
    ]
    at = 0
    for number, cell in enumerate(cells, 1):
        if cell.cell_type == "markdown" and not found:
            at = text.find(cell.source, at)
            if at < 0:
                return [f"{path.stem}.md differs from its notebook in the text of cell {number}"]
            at += len(cell.source)
    return found
