"""Rows on disk: one JSON file for each, named by its key, whole or not there.  Floor 4.

What makes a sweep resumable: a row that is there needs no computing, whoever wrote it, in whatever order. Does not
know what a row means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moelab.store import durable

Row = dict[str, Any]


class RowFolder:
    """Rows under ``folder``, made where it does not exist; raises ``ValueError`` for a folder of something else."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for item in self.folder.iterdir():
            if not item.name.endswith((".row.json", ".row.json.tmp")):
                raise ValueError(f"{self.folder} holds {item.name}, expected rows of a sweep only: give a new folder")

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.row.json"

    def read(self, key: str) -> Row | None:
        """The row, ``None`` where there is none; raises ``ValueError`` where the file was damaged."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            row = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no row ({error}): delete it, and the sweep computes it again") from None
        if not isinstance(row, dict) or row.get("key") != key:
            raise ValueError(f"{path} is the row of another key: delete it, and the sweep computes it again")
        return row

    def write(self, row: Row) -> None:
        """The row appears whole, and survives a power cut."""
        durable.publish(self.path(row["key"]), (json.dumps(row, indent=1, allow_nan=False) + "\n").encode())
