"""Reader of arrays of one's own: a ``.npz`` whose keys are the arguments of ``moelab.Trace.from_arrays``.

``numpy.savez("mine.npz", experts=ids, gate_weights=weights, num_experts=64, request=requests)``: ``experts`` [T, L, K]
is all that must be there, numbers and texts are arrays without axes. Does not know more than it says. Floor 1.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from moelab.domain.trace import Trace
from moelab.domain.trace_of_arrays import ARGUMENTS, trace_of_arrays


def matches(path: Path) -> bool:
    """True for a ``.npz`` file."""
    return path.suffix == ".npz" and path.is_file()


def read(path: Path) -> Trace:
    """The trace; raises ``ValueError`` (expected, got, fix) where keys or arrays are not what ``from_arrays`` takes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a readable .npz file ({error}): save it with numpy.savez; names as texts, not as objects"
        ) from None
    unknown = sorted(set(arrays) - set(ARGUMENTS))
    if unknown or "experts" not in arrays:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected experts, and of {', '.join(ARGUMENTS[1:])}: "
            "rename the keys to the arguments of moelab.Trace.from_arrays"
        )
    said = {name: array.item() if array.ndim == 0 else array for name, array in arrays.items()}
    said.setdefault("provenance", f"file {path.name}")
    try:
        return trace_of_arrays(said.pop("experts"), said.pop("gate_weights", None), **said)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
