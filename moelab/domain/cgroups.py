"""Folders of the control groups that bound this process: its own and all above it, of one controller.

A slice of systemd, a job of Slurm or a container with the host's view has its limits in its own group and not at the
root. Knows Linux cgroups (v1, v2); elsewhere there are none. Does not know what a limit means. Floor 0.
"""

from __future__ import annotations

from pathlib import Path

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def own_folders(controller: str, cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> list[Path]:
    """The group of this process and those above it, from the root downwards; they need not exist.

    ``cgroups`` is where the control groups are mounted, ``own`` the file that names the process's own.
    """
    folders = []
    for line in own.read_text().splitlines() if own.is_file() else ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [cgroups] if not controllers else [cgroups / controllers, cgroups / controller]
        root = next((root for root in roots if root.is_dir()), None)
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        if root is not None:
            folders += [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return folders
