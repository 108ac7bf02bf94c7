"""WriterLock: one writer at a time for a trace folder.

The operating system holds the lock (``flock``, ``msvcrt.locking``) and drops it when the process
dies, however it dies: so the lock file of a dead process is taken over, and no pid is ever guessed
at. The pid inside only serves the error. Does not know traces. Floor 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from moelab.store.error import TraceStoreError

LOCK = "writer.lock"


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # far past the pid, so that others can still read it
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class WriterLock:
    """Held from construction to ``release``; raises ``TraceStoreError`` where another writer holds it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(descriptor)
            except OSError:
                owner = self._path.read_bytes().decode("ascii", "replace").strip() or "unknown"
                os.close(descriptor)
                raise TraceStoreError(
                    self._path, expected="no other writer", got=f"process {owner} recording into this folder",
                    fix="close that writer or end that process, or record into another folder",
                ) from None  # fmt: skip
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # the former owner removed the file between our open and our lock
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor: int | None = descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file and let go; a second call does nothing."""
        if self._descriptor is None:
            return
        if os.name == "nt":  # an open file cannot be removed there
            os.close(self._descriptor)
            self._path.unlink(missing_ok=True)
        else:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
        self._descriptor = None
