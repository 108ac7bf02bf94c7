"""The source stamp: machine code on disk never outlives the sources it was compiled from.

Numba's disk cache watches only the file of the cached function; what it inlines from other files, and the
struct layouts that they define, are frozen in. So a function that is cached takes the checksum of its whole
room into its qualified name, which Numba puts into the names of the cache files: after an edit anywhere in
the room the old files are not found. They stay on disk (``__pycache__/*.nb?``) until someone deletes them.
Does not know what is compiled. Floor 0: the standard library.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


@cache
def stamp_of_room(room: str) -> str:
    """Checksum of the names and contents of all Python files of ``moelab/<room>``, 8 hexadecimal digits."""
    folder = Path(__file__).parent / room
    checksum = 0
    for file in sorted(folder.rglob("*.py")):
        checksum = zlib.crc32(file.relative_to(folder).as_posix().encode(), checksum)
        checksum = zlib.crc32(file.read_bytes(), checksum)
    return f"{checksum:08x}"


def stamped(function: Function) -> Function:
    """Put between ``@njit(cache=True)`` and the function: names it after the sources of its room too."""
    room = function.__module__.split(".")[1]
    function.__qualname__ += f"_{stamp_of_room(room)}"
    return function
