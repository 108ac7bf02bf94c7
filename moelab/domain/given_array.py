"""given_array: what somebody hands over as an array, as a NumPy array, or an error that says what is wrong with it.

Takes lists, NumPy arrays, pandas columns and tensors (of any device, bfloat16 too). Does not know what the numbers
mean. Floor 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def given_array(name: str, value: Any, masked: int | None = None) -> np.ndarray:
    """``value`` as an array of numbers or names; raises ``ValueError`` where it is none.

    ``masked`` stands where a masked array hides an entry; without it such an array is refused.
    """
    if isinstance(value, np.ma.MaskedArray):
        if masked is None and np.ma.is_masked(value):
            raise ValueError(f"{name} hides entries behind a mask, expected all of them: leave those tokens out")
        # A small type would not hold what stands in their place.
        value = np.ma.filled(value.astype(np.int64 if value.dtype.kind in "iu" else value.dtype), masked)
    if hasattr(value, "detach"):  # a tensor, without importing torch
        value = value.detach().cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        array = None
    if array is None or array.dtype.kind not in "iufbUS" + ("O" if _is_names(array) else ""):
        raise ValueError(
            f"{name} is {_kind(value)} that is no array of numbers: give a list with rows of one length, a NumPy array "
            "or a tensor"
        )
    return array


def given_integers(name: str, value: Any, low: int = -1, high: int = 2**31 - 1) -> np.ndarray:
    """Whole numbers from ``low`` to ``high``; a float is refused even if it is whole, because ids are not computed."""
    array = given_array(name, value)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected integers")
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(f"{name} goes from {array.min()} to {array.max()}, expected {low} to {high}")
    return array


def _is_names(array: np.ndarray | None) -> bool:
    """pandas keeps names as objects."""
    return array is not None and array.ndim == 1 and all(isinstance(each, str | int) for each in array.tolist())


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
