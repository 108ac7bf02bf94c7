"""The few calls that change the disk: append, sync, publish a whole file, remove.

Everything that writes in ``moelab.store`` and ``moelab.engine.packed`` goes through here, so that the tests can stop
a recording at every single one of them. Does not know what the bytes mean. Floor 1.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path


def open_append(path: Path) -> FileIO:
    """Unbuffered file at its end: what ``append`` has returned for survives a kill of the process."""
    return FileIO(path, "ab")


def append(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of ``data``; raises ``OSError`` where the disk is full."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def write_at(file: FileIO, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; several threads may write other parts through files of their own."""
    file.seek(offset)
    append(file, data)


def sync(file: FileIO) -> None:
    """Return when the bytes of ``file`` would survive a power cut."""
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable; Windows has no such call and orders names itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(path: Path, data: bytes) -> None:
    """The file appears whole or not at all: write beside it, sync, rename, sync the folder."""
    temporary = path.with_name(path.name + ".tmp")
    with FileIO(temporary, "wb") as file:
        append(file, data)
        sync(file)
    rename(temporary, path)
    sync_folder(path.parent)


def rename(source: Path, target: Path) -> None:
    source.replace(target)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def truncate(path: Path, num_bytes: int) -> None:
    """Cut a torn tail off and make that durable."""
    with FileIO(path, "r+b") as file:
        file.truncate(num_bytes)
        sync(file)
