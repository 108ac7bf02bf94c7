"""neutral: outputs without the machine that they were made on: its folders, its host, its user.

Paths within the project become relative to it, the host's name becomes ``this-machine``; whatever else looks like a
place on a machine is found by ``places`` and not published.
"""

from __future__ import annotations

import getpass
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_ABSOLUTE = re.compile(
    r"(?<![\w./~-])(?:file:/*)?/(?:home|Users|root|tmp|private|work|opt|usr|var|mnt|media|srv|etc|proc|dev/shm)/[^\s'\"<>)]*"
    r"|\b[A-Z]:\\[^\s'\"<>)]*"
)
_COMMON = {"localhost", "root", "user", "jovyan", "runner"}
"""Names that say nothing, and words of any text."""


def neutral(node: Any) -> Any:
    """An output, or a part of it, with every text in it made neutral."""
    if isinstance(node, dict):
        return {name: neutral(value) for name, value in node.items()}
    if isinstance(node, list):
        return [neutral(value) for value in node]
    if not isinstance(node, str):
        return node
    text = node.replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    for host in _hosts():
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "this-machine", text)
    return text


def places(text: str) -> list[str]:
    """What in a text says where it was made: absolute paths, folders, host and user of this machine."""
    found = [match.group() for match in _ABSOLUTE.finditer(text)]
    folders = {str(ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/", "/root", "/usr"}
    found += [f"{folder}" for folder in sorted(folders) if f"{folder}/" in text]
    found += [name for name in _own_names() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    return list(dict.fromkeys(found))


def _hosts() -> list[str]:
    """This machine's name, long and short."""
    names = [platform.node(), platform.node().split(".")[0]]
    return [name for name in dict.fromkeys(names) if name and name not in _COMMON]


def _own_names() -> list[str]:
    """Host and user of this machine, where they are names that no text holds by chance."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = ""  # a container's user without an entry
    return [name for name in [*_hosts(), user] if len(name) > 3 and name not in _COMMON]
