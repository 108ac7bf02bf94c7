"""A virtual machine with the NUMA nodes that a test asks for, under software emulation.

Placement and code paths are real in it, times and bandwidths are not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from tests.vm.image import INTERPRETER

QEMU = "qemu-system-x86_64"
ROOT = Path(__file__).parents[2]
BOOT_SECONDS = 400  # a run takes 30 to 60; emulation shares its cores with other tests
_PASSED = 1  # QEMU's status is (guest's << 1) | 1; 0 is a panic or a power-off


@dataclass(frozen=True)
class Node:
    """``cpus`` as QEMU writes them, none for memory only."""

    memory_mib: int
    cpus: str | None = None


@dataclass(frozen=True)
class GuestReport:
    """Names of the tests that passed, failed and were skipped in the guest, and all that it printed."""

    status: int
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    output: str


def missing() -> str | None:
    """What this machine lacks for a virtual machine."""
    tools = [QEMU, "busybox", "gcc"]
    absent = [tool for tool in tools if shutil.which(tool) is None]
    absent += [] if kernel() else ["a kernel: tests/vm/fetch_kernel build/vm"]
    return ", ".join(absent) or None


def kernel() -> Path | None:
    fetched = ROOT / "build/vm/vmlinuz"
    return next(
        (path for path in [fetched, *Path("/boot").glob("vmlinuz-*-cloud-*")] if os.access(path, os.R_OK)), None
    )


def run_guest(
    disk: Path,
    nodes: list[Node],
    tests: str,
    folder: Path,
    cpu: str = "max",
    words: str = "",
    seconds: int = BOOT_SECONDS,
) -> GuestReport:
    """Boot, run ``tests`` (file names, comma-separated) with NUM_NODES and ``words`` in their environment.

    ``seconds``: after so many the run counts as failed.
    """
    report = folder / "report.xml"
    num_cpus = 1 + max(int(node.cpus.split("-")[-1]) for node in nodes if node.cpus)
    memory = sum(node.memory_mib for node in nodes)
    command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += ["-machine", "q35", "-accel", "tcg", "-cpu", cpu, "-smp", str(num_cpus), "-m", f"{memory}M"]
    for number, node in enumerate(nodes):
        cpus = f",cpus={node.cpus}" if node.cpus else ""
        command += ["-object", f"memory-backend-ram,id=m{number},size={node.memory_mib}M"]
        command += ["-numa", f"node,nodeid={number}{cpus},memdev=m{number}"]
    command += ["-drive", f"if=none,id=disk,file={disk},format=raw,snapshot=on", "-device", "nvme,drive=disk,serial=1"]
    command += ["-device", "isa-debug-exit,iobase=0x501,iosize=1", "-serial", f"file:{report}"]
    variables = f"GUEST_PYTHON={INTERPRETER} GUEST_TESTS={tests} NUM_NODES={len(nodes)} {words}"
    append = f"console=ttyS0 panic=-1 root=/dev/nvme0n1 rw init=/init quiet numa_balancing=disable {variables}"
    command += ["-kernel", str(kernel()), "-append", append]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
        )
        status, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, output = -1, f"no end after {seconds} s: {(error.stdout or b'').decode(errors='replace')}"
    cases = ElementTree.parse(report).iter("testcase") if report.is_file() and report.stat().st_size else []
    named = {"failed": [], "skipped": [], "passed": []}  # type: dict[str, list[str]]
    for case in cases:
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        named[kind].append(case.attrib["name"])
    return GuestReport(status, *(tuple(named[kind]) for kind in ("passed", "failed", "skipped")), output)


def passed(report: GuestReport) -> bool:
    return report.status == _PASSED and bool(report.passed) and not report.failed and not report.skipped
