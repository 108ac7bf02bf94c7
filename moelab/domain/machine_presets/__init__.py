"""Machine presets: one JSON file each, from published figures; a preset says that it was never measured here.  Floor 0.

Rates are peaks: memory channels x 8 bytes x transfers. Channels and transfers (seen 2026-11-26): Xeon gen 4 and 5 8 x
DDR5-4800 and 5600 (first two articles, KTransformers' tutorials); Xeon 6900P 12 x DDR5-6400 or MRDIMM-8800
(servethehome.com, hardwareluxx.de, their reviews of 2024-09); EPYC 9004 12 x DDR5-4800, 460.8 GB/s (tomshardware.com,
2021-12); EPYC 9005 at DDR5-6400 as in kvcache-ai/ktransformers#797: 6000 is what most boards run, 6% less; Threadripper
PRO 7000 8 x DDR5-5200 (kvcache-ai/ktransformers#1115); Macs 819 GB/s, as Apple states them. Cores and memory sizes are
choices within what these are sold with, and the articles name no GPU: both are assumed.

`NAME+GPU` or `NAME+2x-GPU` puts one or several of `GPUS` beside a machine, in place of those it has; GPU i hangs on
node i modulo N. Memory of a GPU is its nominal GiB (H200: 141 GB), its link PCIe x16 after encoding, one way.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from moelab.domain.units import GB, GIB

_SUFFIX = ".json"
_PCIE_4, _PCIE_5 = 31.5, 63.0


@dataclass(frozen=True)
class Gpu:
    """GB/s of the memory is `bus_bits x pin_gbit_per_s / 8`, rounded as vendors do; of the link one way. `source`:
    where bus and pin rate, or the rate itself, were read."""

    device: str
    memory_bytes: int
    bus_bits: int
    pin_gbit_per_s: float
    link_gb_per_s: float
    source: str

    @property
    def read_gb_per_s(self) -> float:
        return round(self.bus_bits * self.pin_gbit_per_s / 8, 1)


_BLACKWELL = "hardware-corner.net/rtx-5090-vs-rtx-pro-6000-spec-comparison-20250321: 512 bit, 1,792 GB/s"
_HOPPER = "acecloud.ai/blog/nvidia-b200-vs-h200-h100-a100: 3.35 and 4.8 TB/s"
GPUS: dict[str, Gpu] = {
    "rtx-3090": Gpu("NVIDIA RTX 3090", 24 * GIB, 384, 19.5, _PCIE_4, "the second article: 936 GB/s"),
    "rtx-4090": Gpu("NVIDIA RTX 4090", 24 * GIB, 384, 21.0, _PCIE_4, "the third article: 1,008 GB/s"),
    "rtx-5090": Gpu("NVIDIA RTX 5090", 32 * GIB, 512, 28.0, _PCIE_5, _BLACKWELL),
    "l20": Gpu("NVIDIA L20", 48 * GIB, 384, 18.0, _PCIE_4, "topcpu.net/en/gpu-c/a40-pcie-vs-l20: 384 bit, 864 GB/s"),
    "l40s": Gpu("NVIDIA L40S", 48 * GIB, 384, 18.0, _PCIE_4,
                "itcreations.com/nvidia-gpu/nvidia-l40s-gpu-accelerator: 384 bit, 18 Gbit/s, 864 GB/s"),
    "rtx-pro-6000": Gpu("NVIDIA RTX PRO 6000 Blackwell", 96 * GIB, 512, 28.0, _PCIE_5, _BLACKWELL),
    "a100-80gb": Gpu("NVIDIA A100 80 GB PCIe", 80 * GIB, 5120, 3.0234, _PCIE_4,
                     "from memory, no page seen: 5,120 bit at 1,512 MHz, two transfers a clock"),
    "h100-80gb": Gpu("NVIDIA H100 80 GB SXM", 80 * GIB, 5120, 5.2344, _PCIE_5, _HOPPER),
    "h200": Gpu("NVIDIA H200", 141 * GB, 6144, 6.25, _PCIE_5, _HOPPER),
}  # fmt: skip
_BESIDE = re.compile(r"(?P<base>[^+]+)\+(?:(?P<num>[1-8])x-)?(?P<gpu>[^+]+)")


def names() -> list[str]:
    """Names of the presets without a GPU added, sorted."""
    folder = resources.files(__package__)
    return sorted(file.name.removesuffix(_SUFFIX) for file in folder.iterdir() if file.name.endswith(_SUFFIX))


def is_name(name: str) -> bool:
    """Is this a preset, with or without GPUs added."""
    base, gpus = _split(name)
    return base in names() and all(gpu in GPUS for gpu in gpus or ())


def read(name: str) -> dict[str, Any]:
    """The machine document of a preset; ValueError lists the presets and the GPUs."""
    if not is_name(name):
        raise ValueError(
            f"machine preset is {name}, expected one of {', '.join(names())}, alone or with a GPU beside it: NAME+GPU "
            f"or NAME+2x-GPU of {', '.join(GPUS)}; or the file of a calibration"
        )
    base, gpus = _split(name)
    text = resources.files(__package__).joinpath(base + _SUFFIX).read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    chosen = document.get("fast_tiers", []) if gpus is None else gpus
    num_nodes = len(document["nodes"])
    tiers = [_fast_tier(gpu, index, num_nodes) for index, gpu in enumerate(chosen)]
    return document | {"name": name, "fast_tiers": tiers}


def _split(name: str) -> tuple[str, list[str] | None]:
    """Base and added GPUs; None where the name adds none."""
    beside = _BESIDE.fullmatch(name)
    if beside is None:
        return name, None
    return beside["base"], [beside["gpu"]] * int(beside["num"] or 1)


def _fast_tier(gpu: str, index: int, num_nodes: int) -> dict[str, Any]:
    one = GPUS[gpu]
    return {
        "name": f"fast{index}",
        "device": one.device,
        "memory_bytes": one.memory_bytes,
        "read_gb_per_s": one.read_gb_per_s,
        "link_gb_per_s": one.link_gb_per_s,
        "node": f"node{index % num_nodes}",
    }
