"""The engine: loads a checkpoint, generates, records. Torch lives here and is imported on first use.  Floor 2."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moelab.engine.engine import Engine, load
    from moelab.engine.generation import Generation
    from moelab.engine.recording import record

__all__ = ["Engine", "Generation", "load", "record"]

_HOME = {"Engine": "engine", "load": "engine", "Generation": "generation", "record": "recording"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
