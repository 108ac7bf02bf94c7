"""markdown: tables as Markdown, and how they get into a page.  Floor 5.

What stands between the two markers of a page is replaced; the prose around them is written by hand and holds no number
that is not in a table. Does not know what is studied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from moelab.domain.trace import Trace


def replace_between(path: str | Path, begin: str, end: str, text: str, *, title: str) -> Path:
    """``text`` between two marker lines of a page, whole or not at all; a page that is not there gets the title.

    Raises ``ValueError`` where a page lacks the markers.
    """
    path = Path(path)
    page = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n\n{begin}\n{end}\n"
    if begin not in page or end not in page.partition(begin)[2]:
        raise ValueError(f"{path} lacks the lines {begin} and {end}, expected both in this order: add them")
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
    partial.replace(path)
    return path


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in lines)


def kind_of(trace: Trace) -> str:
    """What every table says of a trace's routing."""
    return "SYNTHETIC" if trace.header.synthetic else "recorded"
