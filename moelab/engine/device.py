"""The device of the dense path and the type that its weights are multiplied in.

Asks torch what this machine has; `describe_torch` also answers where torch is missing. Floor 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DENSE_DTYPES = ("float32", "bfloat16")


def choose_device(asked: str | None) -> torch.device:
    """`asked`, else cuda where there is one, else the CPU. ValueError for a device that is not there."""
    import torch

    try:
        device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu or cuda, got {asked!r}; leave it out") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected cpu, the only one that torch finds here, got {asked!r}; leave it out")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {asked!r}; leave it out")
    return device


def has_bf16_products(device: torch.device) -> bool:
    """Does the device multiply bf16 in hardware?"""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # torch before 2.7 does not say: no is the safe answer, float32 is always right.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_dense_dtype(asked: str | None, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """`asked`, else the stored type where the device multiplies it in hardware, else float32.

    A CPU without bf16 instructions multiplies bf16 6 times slower than float32 in prefill and no faster
    in decode (AMD EPYC with AVX2, torch 2.13, 7168 x 2112; docs/log.md, 2026-11-22, engine).
    """
    import torch

    if asked is not None:
        if asked not in DENSE_DTYPES:
            raise ValueError(f"dense_dtype: expected one of {', '.join(DENSE_DTYPES)}, got {asked!r}; leave it out")
        return torch.float32 if asked == "float32" else torch.bfloat16
    return stored if stored is torch.bfloat16 and has_bf16_products(device) else torch.float32


def describe_torch() -> dict[str, str]:
    """Rows for `moelab doctor`: version, device, type of the dense path for a bf16 checkpoint."""
    try:
        import torch
    except ImportError as error:
        return {"torch": f"not usable ({error}): generate and record need it, everything else works"}
    device = choose_device(None)
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"
    dense = choose_dense_dtype(None, torch.bfloat16, device)
    return {"torch": torch.__version__, "torch device": name, "dense path": str(dense).removeprefix("torch.")}
