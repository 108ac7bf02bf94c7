"""TraceStoreError: the one error of a damaged, foreign or busy trace folder.

Does not know what a trace is. Floor 1.
"""

from __future__ import annotations

from pathlib import Path

RESTORE = "restore it from a copy or record again; `moelab verify` on the folder lists all damage"


class TraceStoreError(ValueError):
    """A file of a trace folder is not what it should be: names the file, what was expected, what to do."""

    def __init__(self, file: Path | str, *, expected: str, got: str, fix: str = RESTORE) -> None:
        super().__init__(f"{file}: expected {expected}, got {got}: {fix}")
        self.file = Path(file)
        self.expected = expected
        self.got = got
        self.fix = fix
