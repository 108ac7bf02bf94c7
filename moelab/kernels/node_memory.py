"""What a NUMA node can still hold: its free memory less what live mappings were promised and have not yet written.

Memory that is bound to a node comes from there or from nowhere: when the node is full, Linux does not answer "no
memory" but kills the process at the write, long after the mapping succeeded. So room is asked for before. Page cache of
files counts as free, because the kernel gives it up first. The limit of the
process's control group holds for all nodes together. Other processes may still be faster; nothing here reserves.
Knows Linux sysfs; elsewhere nothing is known and nothing refused. Floor 1: NumPy and the standard library.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import weakref
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
    room = room_bytes(node)
    if room is not None and num_bytes > room:
        of_group = cgroup_room_bytes()
        group = "" if of_group is None else f", left by the control group {of_group / 2**30:.2f} GiB"
        raise MemoryError(
            f"node{node}: expected room for {num_bytes / 2**30:.2f} GiB; got {room / 2**30:.2f} GiB (free "
            f"{(free_bytes(node) or 0) / 2**30:.2f} GiB, promised to others {promised_bytes(node) / 2**30:.2f} GiB"
            f"{group}): place fewer experts on it"
        )


def room_bytes(node: int) -> int | None:
    """Bytes that can still be promised, a margin for the system kept; ``None`` where nobody says what is free."""
    free = free_bytes(node)
    if free is None:
        return None
    margin = _MARGIN_BYTES + _MIN_FREE_TIMES * 1024 * (int(_MIN_FREE.read_text()) if _MIN_FREE.is_file() else 0)
    room = free - promised_bytes(node) - margin
    if (of_group := cgroup_room_bytes()) is not None:  # one limit for all nodes
        nodes = {entry.node for entry in _promises}
        room = min(room, of_group - sum(map(promised_bytes, nodes)) - _MARGIN_BYTES)
    return max(0, room)


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
    _promises[:] = [entry for entry in _promises if entry.mapping() is not None]
    return sum(
        max(0, entry.num_bytes - entry.withdrawn_bytes - _written_bytes(entry.address, entry.num_bytes))
        for entry in _promises
        if entry.node == node
    )


def _written_bytes(address: int, length: int) -> int:
    present = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_void_p(present.ctypes.data)):
        return 0  # not told: counted as promised
    return min(length, int((present & 1).sum()) * mmap.PAGESIZE)
