"""text_of: a small file of the operating system (sysfs, procfs, control groups).  Floor 0: the standard library.

Without the objects that ``Path`` makes: a model has hundreds of mappings, and each asks several such files.
"""

from __future__ import annotations

import os
from pathlib import Path


def text_of(path: Path | str) -> str:
    """Its first 64 KiB; empty where there is no such file, or it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 1 << 16).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
