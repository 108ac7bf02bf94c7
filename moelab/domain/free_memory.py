"""Memory that this process may still take: what the machine has free, and what its control groups leave.

In a container the machine may have hundreds of GB free while the group's limit is near: whoever writes beyond it is
killed, long after the mapping succeeded. Page cache counts as free, since the kernel gives it up before it kills; that
a group is slowed down above its ``memory.high`` is not looked at. Reserved huge pages are neither the machine's free
memory nor the group's. Knows Linux cgroups (v1, v2); elsewhere only the machine counts. Floor 0.
"""

from __future__ import annotations

from pathlib import Path

from moelab.domain.cgroups import CGROUPS, OWN_CGROUP, own_folders
from moelab.domain.system_files import text_of

# (limit, usage, the page cache of files in memory.stat): v2, v1
_FILES = (
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)
_NO_LIMIT = 1 << 60  # what v1 writes for none is larger


def free_memory_bytes() -> int:
    """Of the machine, or of the control group that has less."""
    import psutil

    of_group = cgroup_room_bytes()
    of_machine = int(psutil.virtual_memory().available)
    return of_machine if of_group is None else min(of_machine, of_group)


def cgroup_room_bytes(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int | None:
    """What the limits of this process's control group and those above it leave, the least; ``None``: no limit."""
    rooms = (_room_of(folder, *files) for folder in own_folders("memory", cgroups, own) for files in _FILES)
    return min((room for room in rooms if room is not None), default=None)


def _room_of(folder: Path, limit: str, usage: str, cache: tuple[str, ...]) -> int | None:
    most = text_of(f"{folder}/{limit}").strip()
    if most in ("", "max") or int(most) >= _NO_LIMIT:  # another version's file, a root, which has none; no limit
        return None
    stat = dict(line.split() for line in text_of(f"{folder}/memory.stat").splitlines())
    free = sum(int(stat.get(name, 0)) for name in cache)
    return max(0, int(most) - int(text_of(f"{folder}/{usage}") or 0) + free)
