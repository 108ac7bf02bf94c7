"""Machine presets: one JSON file each, from published figures; a preset says that it was never measured here.  Floor 0.

Rates are peaks: memory channels x 8 bytes x transfers. `NAME+GPU` or `NAME+2x-GPU` puts one or several of `GPUS`
beside a machine, in place of those it has; GPU i hangs on node i modulo N. Memory of a GPU is its nominal GiB
(H200: 141 GB), its rate the vendor's, its link PCIe x16 after encoding, one way.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

from moelab.domain.units import GB, GIB

_SUFFIX = ".json"
_PCIE_4, _PCIE_5 = 31.5, 63.0

# name: (device, memory in bytes, GB/s of its memory, GB/s of its link). NVIDIA's data sheets.
GPUS: dict[str, tuple[str, int, float, float]] = {
    "rtx-3090": ("NVIDIA RTX 3090", 24 * GIB, 936.0, _PCIE_4),
    "rtx-4090": ("NVIDIA RTX 4090", 24 * GIB, 1008.0, _PCIE_4),
    "rtx-5090": ("NVIDIA RTX 5090", 32 * GIB, 1792.0, _PCIE_5),
    "l20": ("NVIDIA L20", 48 * GIB, 864.0, _PCIE_4),
    "l40s": ("NVIDIA L40S", 48 * GIB, 864.0, _PCIE_4),
    "rtx-pro-6000": ("NVIDIA RTX PRO 6000 Blackwell", 96 * GIB, 1792.0, _PCIE_5),
    "a100-80gb": ("NVIDIA A100 80 GB PCIe", 80 * GIB, 1935.0, _PCIE_4),
    "h100-80gb": ("NVIDIA H100 80 GB SXM", 80 * GIB, 3350.0, _PCIE_5),
    "h200": ("NVIDIA H200", 141 * GB, 4800.0, _PCIE_5),
}
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
            f"or NAME+2x-GPU of {', '.join(GPUS)}"
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
    device, memory_bytes, read_gb_per_s, link_gb_per_s = GPUS[gpu]
    return {
        "name": f"fast{index}",
        "device": device,
        "memory_bytes": memory_bytes,
        "read_gb_per_s": read_gb_per_s,
        "link_gb_per_s": link_gb_per_s,
        "node": f"node{index % num_nodes}",
    }
