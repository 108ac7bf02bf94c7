"""Rate of the link to a GPU, by torch: pinned memory to the device, and what a read on the device reaches. Floor 2.

Never run by its authors: no machine of theirs had a GPU. Without CUDA there is nothing to measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

_COPY_BYTES = 64_000_000
_READ_BYTES = 1_000_000_000


@dataclass(frozen=True)
class LinkRate:
    """GB/s (1e9) of copies to device number ``index``, and of its own memory."""

    index: int
    device: str
    memory_bytes: int
    link_gb_per_s: float
    read_gb_per_s: float


def link_rates(rounds: int = 10) -> list[LinkRate]:
    """Of every CUDA device; empty without torch or without a device."""
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        home = torch.ones(_COPY_BYTES, dtype=torch.uint8).pin_memory()
        away = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=index)
        large = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device=index)
        times: dict[str, list[float]] = {"copy": [], "read": []}
        for _ in range(rounds + 1):
            for name in times:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                with torch.cuda.device(index):
                    begin.record()
                    if name == "copy":
                        away.copy_(home, non_blocking=True)
                    else:
                        large.sum()
                    end.record()
                    end.synchronize()
                times[name].append(begin.elapsed_time(end) / 1e3)
        properties = torch.cuda.get_device_properties(index)
        found.append(
            LinkRate(
                index, properties.name, properties.total_memory,
                _COPY_BYTES / median(times["copy"][1:]) / 1e9, _READ_BYTES / median(times["read"][1:]) / 1e9,
            )
        )  # fmt: skip
    return found
