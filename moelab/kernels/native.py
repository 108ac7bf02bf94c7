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
_UNSUPPORTED = -2
STATUS = {-1: "bad struct", -2: "unsupported format and mode", -3: "bad shape", -4: "no such expert"}

PHASE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
HOOK = ctypes.CFUNCTYPE(None)
CPUID = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32))
XGETBV = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint32)
REQUEST = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int32)
MAX_NODES = 16


class KernelTable(ctypes.Structure):
    """``moelab_kernel_table``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("abi_version", ctypes.c_uint32),
        ("gate_up", PHASE),
        ("down", PHASE),
        ("linear", PHASE),
        ("begin", HOOK),
        ("end", HOOK),
    )


class AmxQuestions(ctypes.Structure):
    """``moelab_amx_questions``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("abi_version", ctypes.c_uint32),
        ("cpuid", CPUID),
        ("xgetbv", XGETBV),
        ("request_permission", REQUEST),
    )


class Counters(ctypes.Structure):
    """``moelab_counters``."""

    _fields_ = (
        ("bytes_of_node", ctypes.c_uint64 * MAX_NODES),
        ("ns_of_node", ctypes.c_uint64 * MAX_NODES),
        ("tail_ns", ctypes.c_uint64),
        ("total_ns", ctypes.c_uint64),
        ("num_calls", ctypes.c_uint64),
    )


class Forward(ctypes.Structure):
    """``moelab_forward``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("abi_version", ctypes.c_uint32),
        ("job", ctypes.c_void_p),
        ("table", ctypes.POINTER(KernelTable)),
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("expert_ids", ctypes.c_void_p),
        ("gate_weights", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("num_experts", ctypes.c_int64),
        ("address_of_expert", ctypes.c_void_p),
        ("node_of_expert", ctypes.c_void_p),
        ("count_of_expert", ctypes.c_void_p),
        ("pair_of_slot", ctypes.c_void_p),
        ("smallest_up", ctypes.c_int64),
        ("largest_up", ctypes.c_int64),
        ("smallest_down", ctypes.c_int64),
        ("largest_down", ctypes.c_int64),
        ("counters", ctypes.POINTER(Counters)),
        ("bad_token", ctypes.c_int64),
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
        i32, i64, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
        # Younger than the version that has them: a library without them is one of an older install.
        loaded.moelab_pack.argtypes = [i32, pointer, pointer, pointer, i64, i64]
        loaded.moelab_quantise_pack.argtypes = [i32, pointer, i32, pointer, i64, i64]
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY_NAME} cannot be loaded ({error}): reinstall moelab"
    if found != ABI_VERSION:
        return None, f"{LIBRARY_NAME}: expected ABI version {ABI_VERSION}; got {found}: reinstall moelab"
    loaded.moelab_isa_built.argtypes = [ctypes.c_char_p]
    loaded.moelab_isa_supported.argtypes = [ctypes.c_char_p]
    loaded.moelab_kernels.argtypes = [ctypes.c_char_p, i32, i32, ctypes.POINTER(KernelTable)]
    loaded.moelab_amx.argtypes = [ctypes.POINTER(AmxQuestions)]
    loaded.moelab_pool_create.argtypes = [i32, pointer, pointer, i64]
    loaded.moelab_pool_create.restype = pointer
    loaded.moelab_pool_pinned.argtypes = [pointer]
    loaded.moelab_pool_run.argtypes = [pointer, WORK, pointer]
    loaded.moelab_pool_run.restype = None
    loaded.moelab_pool_destroy.argtypes = [pointer]
    loaded.moelab_pool_destroy.restype = None
    loaded.moelab_moe_forward.argtypes = [pointer, pointer]
    loaded.moelab_linear_forward.argtypes = [pointer, pointer]
    loaded.moelab_run_ops.argtypes = [pointer, pointer, i64]
    loaded.moelab_attention_chunks.argtypes = [i64]
    loaded.moelab_attention_chunks.restype = i64
    loaded.moelab_attend.argtypes = [ctypes.c_char_p, i32]
    loaded.moelab_attend.restype = pointer
    loaded.moelab_read_loop_name.argtypes = [i32]
    loaded.moelab_read_loop_name.restype = ctypes.c_char_p
    loaded.moelab_read.argtypes = [i32, pointer, ctypes.c_uint64]
    loaded.moelab_read.restype = ctypes.c_uint64
    loaded.moelab_read_all.argtypes = [pointer, i32, pointer, i64, ctypes.c_uint64, ctypes.c_uint64]
    loaded.moelab_read_all.restype = ctypes.c_uint64
    loaded.moelab_read_nodes.argtypes = [pointer, i32, pointer, pointer, i32, ctypes.c_uint64, ctypes.c_uint64, pointer]
    loaded.moelab_read_nodes.restype = ctypes.c_uint64
    loaded.moelab_peak.argtypes = [pointer, ctypes.c_char_p, i32, i64]
    loaded.moelab_peak.restype = ctypes.c_uint64
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
    if isa == "amx" and status == _UNSUPPORTED:
        raise ValueError(f"isa amx has no kernel for {weight_format} x {activation}: choose amx+avx512 or avx512")
    check_status(status, f"kernels of {isa} for {weight_format} x {activation}")
    return table


def check_status(status: int, what: str) -> None:
    if status != 0:
        raise ValueError(f"{what}: expected status 0; got {status} ({STATUS.get(status, 'unknown')})")
