"""Machine: NUMA nodes, fast tiers and what they can read per second.

Knows the document and how to ask the operating system for topology. Does not measure: bandwidths
come from ``moelab.calibrate`` (probe or calibration) or from a preset, and ``source`` says which.
Floor 0: NumPy, pydantic and the standard library.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from moelab.domain import machine_presets
from moelab.domain.allowed_cores import allowed_cores, parse_core_list
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.spread import Spread
from moelab.domain.summary import summary_html, summary_text
from moelab.domain.units import GIB

Source = Literal["detected", "probe", "calibration", "preset"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NumaNode(_Document):
    """One NUMA node. ``read_gb_per_s`` maps a thread count to GB/s of a pure read of local memory.

    ``memory_channels`` and ``transfer_mt_per_s`` give its peak, where known. ``cores`` may be written as ``"0-31"``.
    ``read_gb_per_s_spread``: of the best of the rates while it was calibrated, ``None`` where nobody noted it.
    """

    name: str
    cores: tuple[int, ...]
    memory_bytes: int = Field(ge=0)
    read_gb_per_s: dict[int, float] = Field(default_factory=dict)
    remote_read_gb_per_s: dict[str, float] = Field(default_factory=dict)
    read_gb_per_s_spread: Spread | None = None
    memory_channels: int | None = Field(default=None, ge=1)
    transfer_mt_per_s: int | None = Field(default=None, ge=1)

    @field_validator("cores", mode="before")
    @classmethod
    def _core_list(cls, cores: Any) -> Any:
        return tuple(parse_core_list(cores)) if isinstance(cores, str) else cores

    @property
    def peak_gb_per_s(self) -> float | None:
        """Channels x 8 bytes x transfers; ``None`` where either is not known."""
        if self.memory_channels is None or self.transfer_mt_per_s is None:
            return None
        return self.memory_channels * 8 * self.transfer_mt_per_s / 1000

    @property
    def best_read_gb_per_s(self) -> float | None:
        """GB/s at the best thread count, ``None`` where it was not measured."""
        return max(self.read_gb_per_s.values()) if self.read_gb_per_s else None


class FastTierDevice(_Document):
    """One fast tier (a GPU, or on a machine without one the CPU in its stead, ``emulated``)."""

    name: str
    device: str
    memory_bytes: int = Field(ge=0)
    read_gb_per_s: float | None = None
    link_gb_per_s: float | None = None
    node: str | None = None
    emulated: bool = False


class Machine(_Document):
    """What a cost model needs to know. ``virtual`` nodes divide one real node and are marked.

    ``kernel_efficiency`` is the share of the read rate that the expert kernels reach over memory, by
    ``isa/weight format/activation``. ``layer_overhead_s`` is the time of one layer call that does not
    depend on bytes, ``barrier_s`` one barrier between workers; ``None`` where not measured.
    ``residuals`` are relative errors of the fit that gave the numbers, by name. ``unified_memory``: a GPU reads the
    nodes' memory. ``published_read_fractions``: shares of the peak that others measured, by what and where.
    ``matrix_unit``: what multiplies matrices beside vectors, ``None``: nothing, or not known. ``expert_times``: of each
    kernel and expert shape that was calibrated. ``notes``: why these numbers are in doubt, where they are.
    """

    version: Literal[1] = 1
    name: str
    source: Source
    date: str | None = None
    cpu: str = ""
    nodes: tuple[NumaNode, ...]
    fast_tiers: tuple[FastTierDevice, ...] = ()
    last_level_cache_bytes: int = 0
    kernel_efficiency: dict[str, float] = Field(default_factory=dict)
    layer_overhead_s: float | None = None
    barrier_s: float | None = None
    contention: dict[str, float] = Field(default_factory=dict)
    residuals: dict[str, float] = Field(default_factory=dict)
    virtual: bool = False
    unified_memory: bool = False
    matrix_unit: Literal["amx"] | None = None
    published_read_fractions: dict[str, float] = Field(default_factory=dict)
    expert_times: tuple[ExpertTimes, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def detect(cls) -> Machine:
        """Topology of this machine from the operating system; bandwidths stay empty."""
        allowed = allowed_cores()
        nodes = _linux_nodes(allowed) or (
            NumaNode(name="node0", cores=tuple(allowed), memory_bytes=_total_memory_bytes()),
        )
        return cls(
            name=platform.node() or "this machine",
            source="detected",
            cpu=_cpu_name(),
            nodes=nodes,
            last_level_cache_bytes=_last_level_cache_bytes(),
            matrix_unit=_matrix_unit(),
        )

    @classmethod
    def preset(cls, name: str) -> Machine:
        """A machine from published figures, ``NAME`` or ``NAME+2x-GPU``; raises ``ValueError`` that lists them."""
        return cls.model_validate(machine_presets.read(name))

    @classmethod
    def given(cls, machine: Machine | str | None) -> Machine | None:
        """What a caller means by ``machine``: a document, the name of a preset, a file, or none.

        Raises ``ValueError`` that lists the presets, ``TypeError`` for what is no machine.
        """
        if machine is None or isinstance(machine, Machine):
            return machine
        if not isinstance(machine, str | Path):
            raise TypeError(
                f"machine is a {type(machine).__name__}, expected moelab.this_machine(), a preset's name, or None"
            )
        return cls.load(machine) if Path(machine).is_file() else cls.preset(str(machine))

    @staticmethod
    def presets() -> list[str]:
        """Names of all presets; each may stand with a GPU beside it (``is_preset``)."""
        return machine_presets.names()

    @staticmethod
    def is_preset(name: str) -> bool:
        return machine_presets.is_name(name)

    @property
    def num_cores(self) -> int:
        return sum(len(node.cores) for node in self.nodes)

    @property
    def read_gb_per_s(self) -> float | None:
        """GB/s of all nodes at once where they were calibrated together, else of the first, whose workers were all."""
        rates = [node.best_read_gb_per_s for node in self.nodes]
        share = self.contention.get(f"read_share_of_{len(rates)}_nodes")
        if share is None or None in rates:
            return rates[0]
        return share * sum(rate for rate in rates if rate is not None)

    def read_share_of_nodes(self, busy: int) -> float:
        """What each node reaches of its own rate while ``busy`` of them read: as calibrated, straight lines between the
        numbers that were, the last beyond them; 1 where nothing was."""
        known = {1: 1.0}
        for name, share in self.contention.items():
            if (found := re.fullmatch(r"read_share_of_(\d+)_nodes", name)) is not None:
                known[int(found[1])] = share
        return float(np.interp(busy, sorted(known), [known[each] for each in sorted(known)]))

    def times_of(
        self, hidden_size: int | None, intermediate_size: int | None, kernel: str | None = None
    ) -> ExpertTimes | None:
        """Calibrated times of that expert shape, of the first kernel where none is named; ``None`` without any.

        Calibrated on the first node alone (older files), they are scaled by read rates where these differ, and say so.
        """
        found = (each for each in self.expert_times if each.is_for(hidden_size, intermediate_size, kernel))
        rates = [rate for node in self.nodes if (rate := node.best_read_gb_per_s) is not None]
        times = next(found, None)
        if times is None or len(rates) < len(self.nodes):
            return times
        return times.scaled(rates, f"read rates of {self.name}")

    def fingerprint(self) -> str:
        """Short sha256 of what costs depend on; channels, spreads and others' measurements are left out."""
        import hashlib

        told = {"memory_channels", "transfer_mt_per_s", "read_gb_per_s_spread"}
        left_out: Any = {
            "nodes": {"__all__": told},
            "published_read_fractions": True,
            "matrix_unit": True,
            "unified_memory": not self.unified_memory,
            "notes": True,
            "expert_times": {n: each.without_cost for n, each in enumerate(self.expert_times)} or True,
        }
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.model_dump_json(indent=1) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Machine:
        """Read a machine file; raises ``ValueError`` that names the file and what to do."""
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise ValueError(f"machine {path} does not exist: give a machine file or leave --machine out") from None
        except (ValidationError, UnicodeDecodeError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ValueError(
                f"machine {path} is not a machine file ({first}): leave --machine out to probe this machine"
            ) from None

    def summary(self) -> dict[str, Any]:
        """What ``repr`` and ``_repr_html_`` show; plain values."""
        rows: dict[str, Any] = {
            "name": self.name,
            "source": self.source + (f" of {self.date}" if self.date else ""),
            "cpu": self.cpu,
            "last-level cache": f"{self.last_level_cache_bytes / 2**20:.0f} MiB",
        }
        for node in self.nodes:
            rate = node.best_read_gb_per_s
            rows[node.name + (" (virtual)" if self.virtual else "")] = (
                f"{len(node.cores)} cores, {node.memory_bytes / GIB:.1f} GiB, "
                + (f"reads {rate:.1f} GB/s" if rate else "read rate not measured")
                + (f" ({node.read_gb_per_s_spread.text(1)})" if node.read_gb_per_s_spread else "")
            )
        for times in self.expert_times:
            of = f" of {times.date}" if times.date and times.date != self.date else ""
            spread = f" ({times.expert_s_spread.scaled(1e3).text(3)})" if times.expert_s_spread else ""
            rows[times.name] = f"{1e3 * times.expert_s[1]:.3f} ms an expert{spread}, residual {times.residual:.1%}{of}"
        for number, note in enumerate(self.notes):
            rows[f"IN DOUBT {number + 1}"] = note
        for tier in self.fast_tiers:
            rows[tier.name] = f"{tier.device}, {tier.memory_bytes / GIB:.1f} GiB" + (
                " (emulated)" if tier.emulated else ""
            )
        return rows

    def __repr__(self) -> str:
        return summary_text("Machine", self.summary())

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return summary_html("Machine", self.summary())


def _linux_nodes(allowed: list[int]) -> tuple[NumaNode, ...]:
    root = Path("/sys/devices/system/node")
    nodes = []
    for folder in sorted(root.glob("node[0-9]*"), key=lambda p: int(p.name[4:])):
        cores = [c for c in parse_core_list((folder / "cpulist").read_text()) if c in allowed]
        total_kib = next(
            int(line.split()[-2]) for line in (folder / "meminfo").read_text().splitlines() if "MemTotal" in line
        )
        nodes.append(NumaNode(name=folder.name, cores=tuple(cores), memory_bytes=total_kib * 1024))
    return tuple(nodes)


def _total_memory_bytes() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return int(psutil.virtual_memory().total)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _matrix_unit() -> Literal["amx"] | None:
    """AMX where the kernel lists its int8 or bf16 tiles."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "amx" if "amx_int8" in flags or "amx_bf16" in flags else None


def _last_level_cache_bytes() -> int:
    """Last-level cache of all cores that may be used, each instance counted once (bytes); 0 where unknown."""
    bytes_of_instance: dict[tuple[int, str], int] = {}
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    for core in allowed_cores():
        for folder in Path(f"/sys/devices/system/cpu/cpu{core}/cache").glob("index*"):
            text = (folder / "size").read_text().strip()
            size = int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)
            level = int((folder / "level").read_text())
            bytes_of_instance[level, (folder / "shared_cpu_list").read_text().strip()] = size
    last = max((level for level, _ in bytes_of_instance), default=0)
    return sum(size for (level, _), size in bytes_of_instance.items() if level == last)


__all__ = ["FastTierDevice", "Machine", "NumaNode"]
