"""How documents show themselves: a caption, then names and values, as text or as an HTML table. Floor 0."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def summary_text(caption: str, summary: Mapping[str, Any]) -> str:
    """The caption and one indented line for each entry."""
    return "\n".join([caption, *(f"  {name}: {value}" for name, value in summary.items())])


def summary_html(caption: str, summary: Mapping[str, Any]) -> str:
    """A two-column HTML table; names and values are escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in summary.items()
    )
    return f"<table><caption>{escape(caption)}</caption>{rows}</table>"
