"""The native library by ctypes: found, checked, never required.

``library()`` gives the loaded library or ``None`` with the reason; importing this module never fails
and loads nothing. Does not choose (see ``isa``). Floor 1: NumPy and the standard library.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from functools import cache
from pathlib import Path

from moelab.kernels.job import ABI_VERSION, ACTIVATION_CODE, FORMAT_CODE, Activation, WeightFormat

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
LIBRARY_NAME = "libmoelab_kernels" + _SUFFIX
STATUS = {-1: "bad struct", -2: "unsupported format and mode", -3: "bad shape"}

PHASE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


class KernelTable(ctypes.Structure):
    """``moelab_kernel_table``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("abi_version", ctypes.c_uint32),
        ("gate_up", PHASE),
        ("down", PHASE),
        ("linear", PHASE),
    )


def library_path() -> Path | None:
    """Beside this file, else among the files of the installed distribution (editable installs)."""
    beside = Path(__file__).with_name(LIBRARY_NAME)
    if beside.is_file():
        return beside
    try:
        files = importlib.metadata.distribution("moelab").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == LIBRARY_NAME:
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    return None


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """(library, "") or (``None``, why)."""
    path = library_path()
    if path is None:
        return None, f"{LIBRARY_NAME} is not installed (no C++ compiler at install time?): reinstall with one"
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.moelab_abi_version.restype = ctypes.c_uint32
        found = loaded.moelab_abi_version()
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY_NAME} cannot be loaded ({error}): reinstall moelab"
    if found != ABI_VERSION:
        return None, f"{LIBRARY_NAME}: expected ABI version {ABI_VERSION}; got {found}: reinstall moelab"
    i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    loaded.moelab_isa_built.argtypes = [ctypes.c_char_p]
    loaded.moelab_isa_supported.argtypes = [ctypes.c_char_p]
    loaded.moelab_kernels.argtypes = [ctypes.c_char_p, i32, i32, ctypes.POINTER(KernelTable)]
    loaded.moelab_quantise.argtypes = [i32, i64, i64, i64, pointer, i64, pointer, pointer, pointer]
    loaded.moelab_combine.argtypes = [i64, i64, i64, i64, pointer, pointer, pointer, pointer]
    loaded.moelab_read.argtypes = [i32, pointer, ctypes.c_uint64]
    loaded.moelab_read.restype = ctypes.c_uint64
    return loaded, ""


def require_library() -> ctypes.CDLL:
    """The library; raises ``RuntimeError`` with the reason where there is none."""
    loaded, why = library()
    if loaded is None:
        raise RuntimeError(f"native kernels: {why}, or choose isa 'numba'")
    return loaded


def kernel_table(isa: str, weight_format: WeightFormat, activation: Activation) -> KernelTable:
    """The phase functions of one ISA; raises ``ValueError`` where it has none for this format and mode."""
    table = KernelTable(struct_bytes=ctypes.sizeof(KernelTable), abi_version=ABI_VERSION)
    status = require_library().moelab_kernels(
        isa.encode(), FORMAT_CODE[weight_format], ACTIVATION_CODE[activation], ctypes.byref(table)
    )
    check_status(status, f"kernels of {isa} for {weight_format} x {activation}")
    return table


def check_status(status: int, what: str) -> None:
    if status != 0:
        raise ValueError(f"{what}: expected status 0; got {status} ({STATUS.get(status, 'unknown')})")
