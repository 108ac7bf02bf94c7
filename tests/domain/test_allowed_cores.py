"""Which cores may have a worker, on systems made of files: siblings, nodes, quotas of one's own and of ancestors."""

from __future__ import annotations

import os

import pytest

from moelab.domain import allowed_cores as module
from moelab.domain.allowed_cores import allowed_cores, cgroup_core_quota, parse_core_list


@pytest.fixture
def system(tmp_path, monkeypatch):
    """16 logical cores, siblings next to each other (0,1 2,3 ..), two nodes of four physical cores."""
    for core in range(16):
        topology = tmp_path / f"cpu/cpu{core}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{core // 2 * 2}-{core // 2 * 2 + 1}\n")
        (tmp_path / f"cpu/cpu{core}/node{core // 8}").mkdir()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        (None, [0, 2, 4, 6, 8, 10, 12, 14]),
        (4.0, [0, 2, 8, 10]),
        (3.9, [0, 2, 8]),
        (1.5, [0]),
        (0.25, [0]),
        (64.0, [0, 2, 4, 6, 8, 10, 12, 14]),
    ],
)
def test_the_quota_counts_physical_cores_from_the_nodes_in_turn(system, monkeypatch, quota, cores):
    monkeypatch.setattr(module, "cgroup_core_quota", lambda: quota)
    assert allowed_cores(system) == cores


def test_the_mask_may_leave_second_siblings_alone(system, monkeypatch):
    monkeypatch.setattr(module, "cgroup_core_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 9, 14, 15}, raising=False)
    assert allowed_cores(system) == [3, 9, 14]


def cgroup(root, path, **files):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.")).write_text(text)


def test_quota_of_the_own_group_and_its_ancestors_v2(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/user.slice/job.scope\n")
    cgroup(root, "user.slice/job.scope", cpu_max="max 100000\n")
    assert cgroup_core_quota(root, own) is None
    cgroup(root, "user.slice", cpu_max="250000 100000\n")
    assert cgroup_core_quota(root, own) == 2.5
    cgroup(root, "user.slice/job.scope", cpu_max="300000 200000\n")
    assert cgroup_core_quota(root, own) == 1.5
    cgroup(root, "other.slice", cpu_max="10000 100000\n")
    assert cgroup_core_quota(root, own) == 1.5
    cgroup(root, ".", cpu_max="50000 100000\n")
    assert cgroup_core_quota(root, own) == 0.5


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_quota_v1(tmp_path, folder):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    cgroup(root, folder, cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert cgroup_core_quota(root, own) is None
    cgroup(root, f"{folder}/docker/abc", cpu_cfs_quota_us="150000\n", cpu_cfs_period_us="50000\n")
    assert cgroup_core_quota(root, own) == 3.0
    cgroup(root, "memory/docker/abc", cpu_cfs_quota_us="50000\n", cpu_cfs_period_us="50000\n")
    assert cgroup_core_quota(root, own) == 3.0


def test_a_group_outside_of_the_view_falls_back_to_the_root(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/../outside\n")
    cgroup(root, ".", cpu_max="200000 100000\n")
    assert cgroup_core_quota(root, own) == 2.0
    assert cgroup_core_quota(root, tmp_path / "no such file") == 2.0
    assert cgroup_core_quota(tmp_path / "nothing mounted", own) is None


def test_core_lists():
    assert parse_core_list("0-3,8\n") == [0, 1, 2, 3, 8]
    assert parse_core_list("") == []
