"""Peak memory of a load: a fresh process loads, and this one reads its counters, up to a thousand times a second.

Anonymous and shared memory and huge pages of the reserve (RssAnon + RssShmem + HugetlbPages of /proc/PID/status) above
the level after the imports; pages of mapped files, which the system takes back when it wants, stand beside it. `VmHWM`
would count them, and lacks those of the reserve. Linux only. Floor 6.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# With what `load` imports late: the level is that after all imports.
CHILD = """
import json, sys
import psutil, tokenizers
from moelab.engine.engine import load
print("imported", flush=True)
sys.stdin.readline()
with load(sys.argv[1], **json.loads(sys.argv[2])) as engine:
    print(json.dumps({"weight_bytes": engine.weight_bytes, "load_s": engine.load_s}), flush=True)
    sys.stdin.readline()
"""


@dataclass(frozen=True)
class LoadMemory:
    """Bytes above the level after import: the peak while loading, the level afterwards, of mapped files at the peak."""

    weight_bytes: int
    peak_bytes: int
    after_bytes: int
    peak_file_bytes: int
    num_samples: int

    @property
    def peak_ratio(self) -> float:
        return self.peak_bytes / self.weight_bytes

    def within(self, ratio: float, more_bytes: int) -> bool:
        return self.peak_bytes <= ratio * self.weight_bytes + more_bytes


def measure_load_memory(directory: Path, **options: Any) -> LoadMemory:
    """Load in a process of its own, with these options of `moelab.load`. RuntimeError where that process fails."""
    command = [sys.executable, "-c", CHILD, str(directory), json.dumps(options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != "imported\n":
            raise RuntimeError(f"load in a process of its own: expected it to import moelab; got exit {child.wait()}")
        before, files_before = _levels(child.pid)
        child.stdin.write("go\n")
        child.stdin.flush()
        peak = peak_file = num_samples = 0
        while not select.select([child.stdout], [], [], 0.001)[0]:
            level, files = _levels(child.pid)
            peak, peak_file, num_samples = max(peak, level), max(peak_file, files), num_samples + 1
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"load in a process of its own: expected its figures; got exit {child.wait()}")
        after, _ = _levels(child.pid)
        child.stdin.write("end\n")
        child.stdin.flush()
    told = json.loads(line)
    return LoadMemory(
        told["weight_bytes"], max(peak, after) - before, after - before, max(peak_file - files_before, 0), num_samples
    )


def _levels(process: int) -> tuple[int, int]:
    """(anonymous, shared and of the huge pages' reserve; file) bytes that are resident."""
    found = {"HugetlbPages": 0}  # a kernel without huge pages has no such line
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(("RssAnon", "RssShmem", "RssFile", "HugetlbPages")):
            name, value, _ = line.split()
            found[name[:-1]] = int(value) * 1024
    return found["RssAnon"] + found["RssShmem"] + found["HugetlbPages"], found["RssFile"]
