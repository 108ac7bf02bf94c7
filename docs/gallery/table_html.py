"""table_html: an output's HTML as a Markdown page may hold it: tables and little else, no style, no script.

Hosts of Markdown drop attributes and show the text of ``<style>``; so both go here, and what is left is small.
"""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser

KEPT = {
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "b",
    "i",
    "code",
    "br",
    "p",
    "ul",
    "li",
}
DROPPED = {"div", "span"}
"""Their text stays."""


def table_html(markup: str) -> str:
    """Raises ``ValueError`` for an element that is neither: a picture would be lost without a word."""
    cleaner = _Cleaner()
    cleaner.feed(markup)
    cleaner.close()
    lines = (line.strip() for line in "".join(cleaner.parts).splitlines())
    return "\n".join(line for line in lines if line)  # an empty line would end the HTML in Markdown


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "style":
            self._in_style = True
        elif tag in KEPT:
            spans = "".join(f' {n}="{v}"' for n, v in attrs if n in ("colspan", "rowspan"))
            self.parts.append(f"<{tag}{spans}>")
        elif tag not in DROPPED:
            raise ValueError(
                f"output has <{tag}>, expected {', '.join(sorted(KEPT | DROPPED))}: or what page draws as a picture"
            )

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._in_style = False
        elif tag in KEPT and tag != "br":
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.parts.append(escape(data, quote=False))
