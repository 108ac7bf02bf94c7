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

_FORMAT = "int4_g32"  # of the probe, and what most models here are packed to
HELP = "what this machine and installation can do, what is missing, and a quick bandwidth probe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-probe", action="store_true", help="leave the bandwidth probe out")


def run(options: argparse.Namespace) -> None:
    document = examine(probe=not options.no_probe)
    if options.json:
        print_json(document)
    else:
        for title, rows in for_people(document).items():
            print_rows(title, rows)
            print()


def examine(probe: bool = True) -> dict[str, dict[str, Any]]:
    """Everything that ``moelab doctor`` says, by section; numbers with their units in the names.

    A wrong ``MOELAB_ISA`` is something to report, not an error: whoever has it comes here to find out.
    """
    import psutil

    from moelab import __version__
    from moelab.calibration import machine_file
    from moelab.domain.allowed_cores import cgroup_core_quota
    from moelab.domain.free_memory import cgroup_room_bytes, free_memory_bytes
    from moelab.domain.machine import Machine
    from moelab.engine.device import describe_torch
    from moelab.kernels import choose_isa, isa_table

    machine = Machine.detect()
    memory = psutil.virtual_memory()
    chosen: str | None = None
    try:
        choice = choose_isa(None)
        chosen, because = choice.isa, choice.why
    except ValueError as error:
        because = str(error)
    torch = describe_torch()
    return {
        "moelab": {
            "version": __version__,
            "python": platform.python_version(),
            "platform": f"{sys.platform} {platform.machine()}",
            "numpy": metadata.version("numpy"),
            "numba": metadata.version("numba"),
            **{name.replace(" ", "_"): value for name, value in torch.items()},
        },
        "kernels": {
            "isas": {row.isa: {"built": row.built, "usable": row.supported, "why": row.why} for row in isa_table()},
            "chosen": chosen,
            "because": because,
        },
        "machine": {
            "cpu": machine.cpu,
            "num_cores": machine.num_cores,
            "cgroup_quota_cores": cgroup_core_quota(),
            "nodes": [
                {"name": node.name, "cores": list(node.cores), "memory_bytes": node.memory_bytes}
                for node in machine.nodes
            ],
            "memory_available_bytes": free_memory_bytes(),
            "memory_total_bytes": memory.total,
            "cgroup_memory_left_bytes": cgroup_room_bytes(),
            "last_level_cache_bytes": machine.last_level_cache_bytes,
            "huge_pages": _huge_pages(),
            "machine_file": str(machine_file()) if machine_file().is_file() else None,
        },
        "bandwidth": _bandwidth(probe, chosen),
        "missing": missing(torch),
    }


def _bandwidth(probe: bool, isa: str | None) -> dict[str, Any]:
    """Figures of ``machine.json`` where a calibration wrote one, else of the quick probe; all absent without both.

    Nothing but these figures is taken from ``machine.json``. An ISA that cannot run is probed as Numba,
    which always can; ``kernel`` says so.
    """
    from moelab.calibration import machine_file, quick_probe
    from moelab.domain.machine import Machine
    from moelab.kernels.measured_share import kernel_share

    source: str | None = None
    machine: Machine | None = None
    if machine_file().is_file():
        try:
            machine, source = Machine.load(machine_file()), str(machine_file())
        except ValueError as error:
            source = f"{machine_file()} is unusable: {error}"
    elif probe:
        machine, source = quick_probe(isa=isa or "numba"), "quick probe"
    share = kernel_share(machine, _FORMAT) if machine and machine.kernel_efficiency else None
    return {
        "source": source,
        "read_gb_per_s": machine.nodes[0].best_read_gb_per_s if machine else None,
        "kernel": share.kernel if share else None,
        "kernel_efficiency": share.share if share else None,
        "layer_overhead_s": machine.layer_overhead_s if machine else None,
    }


def for_people(document: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections of ``examine`` as tables: prose, GiB and percent instead of plain numbers."""
    about, kernels, machine = document["moelab"], document["kernels"], document["machine"]
    quota, pages, figures = machine["cgroup_quota_cores"], machine["huge_pages"], document["bandwidth"]
    left = machine["cgroup_memory_left_bytes"]
    tables: dict[str, dict[str, Any]] = {
        "moelab": {name.replace("_", " "): value for name, value in about.items()},
        "kernels": {
            **{isa: _status(**row) for isa, row in kernels["isas"].items()},
            "chosen": kernels["chosen"],
            "because": kernels["because"],
        },
        "machine": {
            "cpu": machine["cpu"],
            "cores usable": machine["num_cores"],
            "cgroup quota": "none" if quota is None else f"{quota:g} cores",
            "cgroup memory": "no limit" if left is None else f"{left / 2**30:.1f} GiB left",
            "NUMA nodes": len(machine["nodes"]),
            **{
                node["name"]: f"cores {', '.join(map(str, node['cores']))}; {node['memory_bytes'] / 2**30:.1f} GiB"
                for node in machine["nodes"]
            },
            "memory available": f"{machine['memory_available_bytes'] / 2**30:.1f} of "
            f"{machine['memory_total_bytes'] / 2**30:.1f} GiB",
            "last-level cache": f"{machine['last_level_cache_bytes'] / 2**20:.0f} MiB",
            "huge pages, transparent": pages["transparent"] or "not known on this platform",
            "huge pages, reserved": ", ".join(f"{n} of {size}" for size, n in pages["num_reserved_of_size"].items())
            or "none",
            "calibration": machine["machine_file"] or "none: commands use the quick probe",
        },
    }
    if figures["source"] is not None:
        rows = {"from": figures["source"], "read, GB/s": figures["read_gb_per_s"]}
        if figures["kernel_efficiency"] is not None:
            rows[f"experts, % of read ({figures['kernel']})"] = 100 * figures["kernel_efficiency"]
        if figures["layer_overhead_s"] is not None:
            rows["layer call overhead, microseconds"] = 1e6 * figures["layer_overhead_s"]
        tables["bandwidth (shared machines vary: ratios last, absolute rates do not)"] = rows
    tables["missing on this platform"] = document["missing"] or {"nothing": "everything of this version works here"}
    return tables


def _status(built: bool, usable: bool, why: str) -> str:
    said = f"{'built' if built else 'not built'}, {'supported here' if usable else 'not usable here'}"
    return said + (f" ({why})" if why else "")


def _huge_pages() -> dict[str, Any]:
    """``transparent`` is ``None`` where the platform does not say."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file():
        return {"transparent": None, "num_reserved_of_size": {}}
    reserved = {
        folder.name.removeprefix("hugepages-"): int((folder / "nr_hugepages").read_text())
        for folder in sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*"))
    }
    return {
        "transparent": setting.read_text().split("[")[1].split("]")[0],
        "num_reserved_of_size": reserved,
    }


def missing(torch: dict[str, str]) -> dict[str, str]:
    """What does not work here and why; ``torch`` is what ``describe_torch`` said."""
    from moelab.kernels import isa_table

    found: dict[str, str] = {}
    rows = {row.isa: row for row in isa_table()}
    if not rows["generic"].built:
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        fix = "reinstall moelab to build them" if compiler else "install a C++ compiler and reinstall moelab"
        found["native kernels"] = f"{rows['generic'].why}: {fix}; Numba runs instead"
    for isa in ("avx2", "avx512", "amx"):
        if not rows[isa].built:
            found[isa] = "not in this build: the others run"
        elif not rows[isa].supported:
            found[isa] = rows[isa].why
    if "torch device" not in torch:
        found["torch"] = torch["torch"]
    elif not torch["torch device"].startswith("cuda"):
        found["cuda device"] = "torch finds none: the dense path runs on the CPU"
    if sys.platform != "linux":
        found["pinned workers, NUMA nodes, huge pages"] = f"Linux only, this is {sys.platform}; the rest works"
    return found
