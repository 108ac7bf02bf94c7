"""module: the JavaScript of a widget as one ES module, from the files in ``js``.  Floor 6.

anywidget loads one text, so that files cannot import each other: they are joined in the order given, after the colours
of ``moelab.palette``. The last one exports ``render``. Does not know what they draw.
"""

from __future__ import annotations

import json
from pathlib import Path

from moelab.palette import ON_DARK, PALETTE, VIRIDIS

FOLDER = Path(__file__).parent / "js"


def module_text(*names: str) -> str:
    """Text of one ES module: the palette, ``theme.js``, then the files ``names`` of ``js``."""
    colours = {"PALETTE": PALETTE, "ON_DARK": ON_DARK, "VIRIDIS": VIRIDIS}
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in colours.items())
    return constants + "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("theme.js", *names))


def style_text() -> str:
    """The one style sheet of all widgets: every ``.css`` of the folder, ``widgets.css`` first."""
    files = sorted(FOLDER.glob("*.css"), key=lambda file: (file.name != "widgets.css", file.name))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
