"""``moelab doctor``: what this machine and this installation can do, what was chosen and why."""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from moelab.cli.output import print_json, print_rows

HELP = "what this machine and installation can do, what is missing, and a quick bandwidth probe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-probe", action="store_true", help="leave the bandwidth probe out")


def run(options: argparse.Namespace) -> None:
    document = examine(probe=not options.no_probe)
    if options.json:
        print_json(document)
    else:
        for title, rows in document.items():
            print_rows(title, rows)
            print()


def examine(probe: bool = True) -> dict[str, dict[str, Any]]:
    """Everything that ``moelab doctor`` says, by section; plain values."""
    import psutil

    from moelab import __version__
    from moelab.calibrate import machine_file, quick_probe
    from moelab.domain.machine import Machine, cgroup_core_quota
    from moelab.engine.device import describe_torch
    from moelab.kernels import choose_isa, isa_table

    machine = quick_probe() if probe else Machine.detect()
    memory = psutil.virtual_memory()
    choice = choose_isa(None)
    quota = cgroup_core_quota()
    document: dict[str, dict[str, Any]] = {
        "moelab": {
            "version": __version__,
            "Python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
            "numpy, numba": f"{metadata.version('numpy')}, {metadata.version('numba')}",
            **describe_torch(),
        },
        "kernels": {
            **{row.isa: _status(row) for row in isa_table()},
            "chosen": choice.isa,
            "because": choice.why,
        },
        "machine": {
            "cpu": machine.cpu,
            "cores usable": machine.num_cores,
            "cgroup quota": "none" if quota is None else f"{quota:g} cores",
            "NUMA nodes": len(machine.nodes),
            **{
                node.name: f"cores {', '.join(map(str, node.cores))}; {node.memory_bytes / 2**30:.1f} GiB"
                for node in machine.nodes
            },
            "memory available": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB",
            "last-level cache": f"{machine.last_level_cache_bytes / 2**20:.0f} MiB",
            **_huge_pages(),
            "calibration": str(machine_file()) if machine_file().is_file() else "none: commands use the quick probe",
        },
    }
    if probe:
        node = machine.nodes[0]
        (key, efficiency), *_ = machine.kernel_efficiency.items()
        document["quick probe (shared machines vary: ratios last, absolute rates do not)"] = {
            "read, GB/s": node.best_read_gb_per_s,
            f"experts, % of read ({key})": 100 * efficiency,
            "layer call overhead, microseconds": 1e6 * (machine.layer_overhead_s or 0.0),
        }
    document["missing on this platform"] = missing() or {"nothing": "everything of this version works here"}
    return document


def _status(row: Any) -> str:
    built = "built" if row.built else "not built"
    supported = "supported here" if row.supported else "not usable here"
    return f"{built}, {supported}" + (f" ({row.why})" if row.why else "")


def _huge_pages() -> dict[str, str]:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file():
        return {"huge pages": "not known on this platform"}
    reserved = {
        folder.name.removeprefix("hugepages-"): (folder / "nr_hugepages").read_text().strip()
        for folder in Path("/sys/kernel/mm/hugepages").glob("hugepages-*")
    }
    chosen = setting.read_text().split("[")[1].split("]")[0]
    return {
        "huge pages, transparent": chosen,
        "huge pages, reserved": ", ".join(f"{n} of {size}" for size, n in sorted(reserved.items())) or "none",
    }


def missing() -> dict[str, str]:
    """What does not work here and why; empty where everything does."""
    from moelab.kernels import isa_table

    found: dict[str, str] = {}
    generic = next(row for row in isa_table() if row.isa == "generic")
    if not generic.built:
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        fix = "reinstall moelab to build them" if compiler else "install a C++ compiler and reinstall moelab"
        found["native kernels"] = f"{generic.why}: {fix}; Numba runs instead"
    if sys.platform != "linux":
        found["pinned workers, NUMA nodes, huge pages"] = f"Linux only, this is {sys.platform}; the rest works"
    return found
