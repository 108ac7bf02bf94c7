"""shipped: where the data that comes with moelab lies (captures and the small model they came from).

A checkout keeps it in ``traces/``, an installed package in ``moelab/shipped/``. Floor 1.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_root() -> Path:
    """The folder of shipped data: that of the checkout when running from one, else the installed one."""
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "traces").is_dir():
        return checkout / "traces"
    return _PACKAGE / "shipped"


def shipped(name: str) -> Path:
    """Path of shipped data such as ``nano/capture``; raises ``ValueError`` where it is not there."""
    root = shipped_root()
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"shipped data {name!r} lies outside the shipped folder: give a name such as 'nano/capture'")
    if not path.exists():
        there = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
        raise ValueError(
            f"shipped data {name!r} is not installed: expected {path}, found {', '.join(there) or 'nothing'} beside "
            "it; reinstall moelab (`pip install -c constraints.txt -e .` in a checkout) or give a path"
        )
    return path
