"""One self-contained HTML page of tables and pictures; the plotting library is written into it.  Floor 6.

So it opens without a network. Does not know what is shown.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

_CONFIG = {"displayModeBar": False, "responsive": True}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem;
color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0 } th, td { text-align: left; padding: .25rem .8rem .25rem 0;
border-bottom: 1px solid #e0e0e0; vertical-align: top } thead th { border-bottom: 2px solid #888 }
p { max-width: 60rem }
"""


def pictures(figures: list[Any]) -> list[str]:
    """Each figure as HTML; the first carries the plotting library."""
    return [
        figure.to_html(full_html=False, include_plotlyjs=(number == 0), default_height="420px", config=_CONFIG)
        for number, figure in enumerate(figures)
    ]


def write_page(path: str | Path, title: str, body: str) -> Path:
    """Write the page, whole or not at all; returns its path. ``title`` is escaped, ``body`` is HTML."""
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path
