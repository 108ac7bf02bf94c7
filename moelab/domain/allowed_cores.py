"""Which cores this process may compute on: one of each physical core, bounded by affinity mask and cgroup quota.

A worker that spins needs a core of its own: a second thread of a physical core (SMT) shares its memory ports, and
half a core's quota would be spent before the others arrive. So siblings go first, the quota is rounded down, and what
it leaves is taken from the NUMA nodes in turn, so that every node keeps its workers while it can. Knows Linux sysfs and
cgroups (v1, v2); elsewhere every logical core counts and no quota is seen. Floor 0: the standard library.
"""

from __future__ import annotations

import os
from itertools import zip_longest
from pathlib import Path

from moelab.domain.cgroups import CGROUPS, OWN_CGROUP, own_folders

SYSTEM = Path("/sys/devices/system")


def allowed_cores(system: Path = SYSTEM) -> list[int]:
    """Cores (numbers of the operating system, ascending) that may each have one worker; never none."""
    cores = first_siblings(affinity_mask(), system)
    quota = cgroup_core_quota()
    if quota is None:
        return cores
    by_node: dict[int, list[int]] = {}
    for core in cores:
        by_node.setdefault(node_of_core(core, system), []).append(core)
    in_turn = [core for turn in zip_longest(*by_node.values()) for core in turn if core is not None]
    return sorted(in_turn[: max(1, int(quota))])


def affinity_mask() -> list[int]:
    """Logical cores that the scheduler may give this process, ascending."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def first_siblings(cores: list[int], system: Path = SYSTEM) -> list[int]:
    """The first of ``cores`` of each physical core."""
    seen: set[int] = set()
    kept = []
    for core in cores:
        file = system / f"cpu/cpu{core}/topology/thread_siblings_list"
        siblings = parse_core_list(file.read_text()) if file.is_file() else [core]
        if core not in seen:
            kept.append(core)
        seen.update(siblings)
    return kept


def node_of_core(core: int, system: Path = SYSTEM) -> int:
    """Number of the NUMA node that a core belongs to; 0 where the system does not say."""
    for folder in (system / f"cpu/cpu{core}").glob("node[0-9]*"):
        return int(folder.name[4:])
    return 0


def cgroup_core_quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> float | None:
    """Cores' worth of CPU time that this process's cgroup and its ancestors grant, the least; ``None``: no limit."""
    quotas = map(_quota_of, own_folders("cpu", cgroups, own))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    v2, v1 = folder / "cpu.max", folder / "cpu.cfs_quota_us"
    if v2.is_file():
        quota, period = v2.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    if v1.is_file():
        quota_us, period_us = int(v1.read_text()), int(v1.with_name("cpu.cfs_period_us").read_text())
        return None if quota_us <= 0 else quota_us / period_us
    return None


def parse_core_list(text: str) -> list[int]:
    """``"0-3,8"`` -> ``[0, 1, 2, 3, 8]``, the notation of Linux sysfs."""
    cores: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.extend(range(int(first), int(last or first) + 1))
    return cores
