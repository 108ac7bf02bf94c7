"""What a NUMA node can still hold: its free memory less what live mappings were promised and have not yet written.

Memory that is bound to a node comes from there or from nowhere: when the node is full, Linux does not answer "no
memory" but kills the process at the write, long after the mapping succeeded. So room is asked for before. Page cache of
files counts as free, because the kernel gives it up first. The limit of the process's control group holds for all
nodes together. Other processes may still be faster; nothing here reserves. Knows Linux sysfs; elsewhere nothing is
known and nothing refused. Floor 1: NumPy and the standard library.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moelab.domain.free_memory import cgroup_room_bytes

_NODES = Path("/sys/devices/system/node")
_MIN_FREE = Path("/proc/sys/vm/min_free_kbytes")
_MARGIN_BYTES = 64 << 20
# The kernel's own watermarks lie at 1 to 1.5 times vm.min_free_kbytes, and are shared out over the nodes.
_MIN_FREE_TIMES = 2


@dataclass
class _Promise:
    node: int
    mapping: weakref.ref[mmap.mmap]
    address: int
    num_bytes: int
    withdrawn_bytes: int = 0


_promises: list[_Promise] = []


def check_room(node: int, num_bytes: int) -> None:
    """Raise ``MemoryError`` where ``num_bytes`` more do not fit on ``node`` of the operating system."""
    check_rooms({node: num_bytes})


def check_rooms(wanted: Mapping[int, int]) -> None:
    """Raise ``MemoryError`` where these bytes by node do not fit there, or not all of them into the control group."""
    promised = _promised()
    for node, num_bytes in wanted.items():
        room = _room(node, promised)
        if room is not None and num_bytes > room:
            raise MemoryError(
                f"node{node}: expected room for {num_bytes / 2**30:.2f} GiB; got {room / 2**30:.2f} GiB (free "
                f"{(free_bytes(node) or 0) / 2**30:.2f} GiB, promised to others {promised.get(node, 0) / 2**30:.2f} "
                "GiB): place fewer experts on it"
            )
    of_group = cgroup_room_bytes()
    if of_group is None:
        return
    taken, total = sum(promised.values()), sum(wanted.values())
    in_group = max(0, of_group - taken - _MARGIN_BYTES)
    if total > in_group:
        raise MemoryError(
            f"{', '.join(f'node{node}' for node in wanted)}: expected room for {total / 2**30:.2f} GiB; got "
            f"{in_group / 2**30:.2f} GiB (left by the control group {of_group / 2**30:.2f} GiB, promised to others "
            f"{taken / 2**30:.2f} GiB): raise the limit of the container"
        )


def room_bytes(node: int) -> int | None:
    """Bytes that can still be promised, a margin for the system kept; ``None`` where nobody says what is free."""
    promised = _promised()
    room, of_group = _room(node, promised), cgroup_room_bytes()
    if room is None or of_group is None:
        return room
    return min(room, max(0, of_group - sum(promised.values()) - _MARGIN_BYTES))


def _room(node: int, promised: Mapping[int, int]) -> int | None:
    """Of the node's own memory."""
    free = free_bytes(node)
    if free is None:
        return None
    margin = _MARGIN_BYTES + _MIN_FREE_TIMES * 1024 * (int(_MIN_FREE.read_text()) if _MIN_FREE.is_file() else 0)
    return max(0, free - promised.get(node, 0) - margin)


def free_bytes(node: int) -> int | None:
    """Free memory and page cache of files, by the node's meminfo; ``None`` without one."""
    file = _NODES / f"node{node}/meminfo"
    if not file.is_file():
        return None
    kib = {name: int(value) for name, value in re.findall(r"(\w[\w()]*): +(\d+) kB", file.read_text())}
    return 1024 * sum(kib.get(name, 0) for name in ("MemFree", "Active(file)", "Inactive(file)"))


def promise(node: int, mapping: mmap.mmap, memory: np.ndarray) -> None:
    """``memory`` of ``mapping`` is bound to ``node`` and will be written; forgotten when the mapping dies."""
    _promises.append(_Promise(node, weakref.ref(mapping), memory.ctypes.data, len(memory)))


def withdraw(address: int, num_bytes: int) -> None:
    """These bytes of a promised mapping were given back and will not be written again."""
    for entry in _promises:
        if entry.mapping() is not None and entry.address <= address < entry.address + entry.num_bytes:
            entry.withdrawn_bytes += num_bytes


def promise_again(address: int, num_bytes: int) -> None:
    """Bytes that were given back will be written after all."""
    withdraw(address, -num_bytes)


def promised_bytes(node: int) -> int:
    """Bytes of live mappings bound to ``node`` that have no page yet."""
    return _promised().get(node, 0)


def _promised() -> dict[int, int]:
    """The same of all nodes that have some, by node."""
    _promises[:] = [entry for entry in _promises if entry.mapping() is not None]
    found: dict[int, int] = {}
    for entry in _promises:
        left = entry.num_bytes - entry.withdrawn_bytes - _written_bytes(entry.address, entry.num_bytes)
        found[entry.node] = found.get(entry.node, 0) + max(0, left)
    return found


def _written_bytes(address: int, length: int) -> int:
    present = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_void_p(present.ctypes.data)):
        return 0  # not told: counted as promised
    return min(length, int((present & 1).sum()) * mmap.PAGESIZE)
