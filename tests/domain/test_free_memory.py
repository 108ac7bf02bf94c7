"""What control groups leave, on systems made of files, and of a real group where this process may make one."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from moelab.domain import free_memory as module
from moelab.domain.cgroups import CGROUPS, own_folders
from moelab.domain.free_memory import cgroup_room_bytes, free_memory_bytes

GIB = 1 << 30


def group(folder, limit, usage, cache, v1=False):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    total = "total_" if v1 else ""
    text = f"anon 5\ninactive_file 77\n{total}inactive_file {cache // 4}\n{total}active_file {cache - cache // 4}\n"
    (folder / "memory.stat").write_text(text)


def test_the_least_of_the_own_group_and_those_above_it(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/system.slice/job.scope\n")
    root.mkdir()
    assert cgroup_room_bytes(root, own) is None, "a root has no such files"
    group(root / "system.slice/job.scope", "max", 3 * GIB, 0)
    assert cgroup_room_bytes(root, own) is None
    group(root / "system.slice", 8 * GIB, 7 * GIB, 2 * GIB)
    assert cgroup_room_bytes(root, own) == 3 * GIB
    group(root / "system.slice/job.scope", 2 * GIB, GIB, GIB // 2)
    assert cgroup_room_bytes(root, own) == 3 * GIB // 2
    group(root / "other.slice", 10, 0, 0)
    assert cgroup_room_bytes(root, own) == 3 * GIB // 2
    group(root / "system.slice/job.scope", GIB, 3 * GIB, 0)
    assert cgroup_room_bytes(root, own) == 0, "a limit that was lowered afterwards"


def test_of_the_controller_of_version_1(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n")
    group(root / "memory/docker/abc", 9223372036854771712, 5 * GIB, 0, v1=True)
    assert cgroup_room_bytes(root, own) is None
    group(root / "memory/docker", 6 * GIB, 5 * GIB, GIB // 4, v1=True)
    assert cgroup_room_bytes(root, own) == 5 * GIB // 4
    group(root / "cpu,cpuacct/docker/abc", 7, 0, 0, v1=True)
    assert cgroup_room_bytes(root, own) == 5 * GIB // 4


@pytest.mark.parametrize(("of_group", "expected"), [(None, 10 * GIB), (3 * GIB, 3 * GIB), (30 * GIB, 10 * GIB)])
def test_of_machine_and_group_the_less(monkeypatch, of_group, expected):
    class Memory:
        available = 10 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory)
    monkeypatch.setattr(module, "cgroup_room_bytes", lambda: of_group)
    assert free_memory_bytes() == expected


def test_a_real_group(tmp_path):
    """A process in a group of 512 MiB, 100 of them written, knows what is left."""
    folders = [folder for folder in own_folders("memory") if (folder / "memory.stat").exists()]
    made = next((folder / f"moelab-test-{os.getpid()}" for folder in reversed(folders)), CGROUPS / "none")
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no right to make a control group: {error}")
    try:
        limit = next((made / name for name in ("memory.max", "memory.limit_in_bytes") if (made / name).exists()), None)
        if limit is None:
            pytest.skip("no memory controller here")
        try:
            limit.write_text(str(512 << 20))
        except OSError as error:
            pytest.skip(f"no right to limit a control group: {error}")
        code = (
            f"open({str(made / 'cgroup.procs')!r}, 'w').write('0')\n"
            "from moelab.domain.free_memory import cgroup_room_bytes\n"
            "before = cgroup_room_bytes(); held = bytearray(b'1') * (100 << 20); print(before, cgroup_room_bytes())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        before, after = map(int, done.stdout.split())
    finally:
        made.rmdir()
    assert 380 << 20 < before <= 512 << 20
    assert 90 << 20 < before - after < 130 << 20
