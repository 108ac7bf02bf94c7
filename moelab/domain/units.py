"""Units of the house and the few functions that print them.  Floor 0.

GB is 1e9 bytes everywhere (weights, bandwidth, files). GiB (2**30) is used only for
memory sizes, where the hardware is sold and reported in it. Nothing here rounds a
number that is computed with: these functions end in a string or start from one.
"""

from __future__ import annotations

import re

KB = 10**3
MB = 10**6
GB = 10**9
TB = 10**12
KIB = 2**10
MIB = 2**20
GIB = 2**30
TIB = 2**40

BYTES_OF_UNIT: dict[str, int] = {
    "B": 1,
    "kB": KB,
    "MB": MB,
    "GB": GB,
    "TB": TB,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": TIB,
}
_UNIT_OF_LOWER = {unit.lower(): unit for unit in BYTES_OF_UNIT}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def format_gb(num_bytes: float, digits: int = 1) -> str:
    """Bytes in GB of 1e9: `594.2 GB`."""
    return f"{num_bytes / GB:.{digits}f} GB"


def format_gib(num_bytes: float, digits: int = 1) -> str:
    """Bytes in GiB of 2**30, for memory sizes only: `64.0 GiB`."""
    return f"{num_bytes / GIB:.{digits}f} GiB"


def format_bytes(num_bytes: float) -> str:
    """Bytes in the largest decimal unit that keeps a digit before the point: `24.77 MB`."""
    for unit in ("TB", "GB", "MB", "kB"):
        # What would print as 1000.00 of the smaller unit already goes up to this one.
        if round(abs(num_bytes)) >= 0.999995 * BYTES_OF_UNIT[unit]:
            return f"{num_bytes / BYTES_OF_UNIT[unit]:.2f} {unit}"
    return f"{num_bytes:.0f} B"


def format_params(num_params: float, digits: int = 2) -> str:
    """A parameter count in billions, as model cards write it: `1026.41 B`."""
    return f"{num_params / 1e9:.{digits}f} B"


def format_ms(seconds: float, digits: int = 2) -> str:
    """Seconds in milliseconds: `12.34 ms`."""
    return f"{seconds * 1e3:.{digits}f} ms"


def parse_bytes(text: str | int) -> int:
    """A size a person typed, in bytes: `24GB`, `1.5 GiB`, `4096`.

    A bare number is bytes. Letters are matched without case, so that `gb` is GB (1e9);
    the `i` alone makes a unit binary. Raises ValueError for anything else, a fraction of
    a byte included.
    """
    if isinstance(text, int):
        text = str(text)
    match = _SIZE.fullmatch(text)
    unit = _UNIT_OF_LOWER.get((match.group(2) or "B").lower()) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"size: expected a number with one of {', '.join(BYTES_OF_UNIT)}, got {text!r}; "
            "write for example 24GB (1e9 bytes each) or 22GiB (2**30 bytes each)"
        )
    whole, _, fraction = match.group(1).partition(".")
    scaled = int(whole + fraction) * BYTES_OF_UNIT[unit]
    num_bytes, rest = divmod(scaled, 10 ** len(fraction))
    if rest:
        raise ValueError(f"size: expected a whole number of bytes, got {text!r}; write it in a smaller unit")
    return num_bytes
