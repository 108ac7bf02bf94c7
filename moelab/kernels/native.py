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
from typing import Any, TypeVar

from moelab.kernels.job import ABI_VERSION, FORMAT_CODE, Activation, WeightFormat, activation_code

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
LIBRARY_NAME = "libmoelab_kernels" + _SUFFIX
_UNSUPPORTED = -2
STATUS = {
    -1: "bad struct", -2: "unsupported format and mode", -3: "bad shape", -4: "no such expert", -5: "not a number",
    -6: "an expert without a home",
}  # fmt: skip

PHASE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
HOOK = ctypes.CFUNCTYPE(None)
CPUID = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32))
XGETBV = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint32)
REQUEST = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int32)
MAX_NODES = 16
_Struct = TypeVar("_Struct", bound=ctypes.Structure)


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
        ("struct_bytes", ctypes.c_uint32),
        ("abi_version", ctypes.c_uint32),
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
        ("placement", ctypes.c_void_p),
    )


class Placement(ctypes.Structure):
    """``moelab_placement``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("abi_version", ctypes.c_uint32),
        ("num_nodes", ctypes.c_int64),
        ("piece_of_expert", ctypes.c_void_p),
        ("first_group", ctypes.c_void_p),
        ("num_groups", ctypes.c_void_p),
        ("first_row", ctypes.c_void_p),
        ("num_rows", ctypes.c_void_p),
        ("piece_bytes", ctypes.c_void_p),
        ("nodes_of_piece", ctypes.c_void_p),
        ("address_of_copy", ctypes.c_void_p),
        ("slowness", ctypes.c_void_p),
        ("dispatch", ctypes.c_void_p),
        ("masks", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("node_of_job", ctypes.c_void_p),
        ("piece_of_job", ctypes.c_void_p),
        ("expert_of_job", ctypes.c_void_p),
        ("loads", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("num_entries", ctypes.c_int64),
        ("expert_of_entry", ctypes.c_void_p),
        ("weights_of_entry", ctypes.c_void_p),
        ("group_of_entry", ctypes.c_void_p),
        ("row_of_entry", ctypes.c_void_p),
        ("up_start", ctypes.c_void_p),
        ("down_start", ctypes.c_void_p),
        ("late_of_expert", ctypes.c_void_p),
        ("late_bytes_of_node", ctypes.c_void_p),
    )


def sized(struct: type[_Struct], **fields: Any) -> _Struct:
    """A struct of the ABI with its size and version, which the library compares with its own."""
    return struct(struct_bytes=ctypes.sizeof(struct), abi_version=ABI_VERSION, **fields)


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
        if found != ABI_VERSION:
            return None, f"{LIBRARY_NAME}: expected ABI version {ABI_VERSION}; got {found}: reinstall moelab"
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)  # a library of an older install of the same version may lack one
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return None, f"{LIBRARY_NAME} cannot be loaded ({error}): reinstall moelab"
    return loaded, ""


_i32, _i64, _u64, _pointer, _text = (
    ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p,
)  # fmt: skip
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {  # result, arguments
    "moelab_isa_built": (_i32, [_text]),
    "moelab_isa_supported": (_i32, [_text]),
    "moelab_avx512_bf16": (_i32, []),
    "moelab_kernels": (_i32, [_text, _i32, _i32, ctypes.POINTER(KernelTable)]),
    "moelab_amx": (_i32, [ctypes.POINTER(AmxQuestions)]),
    "moelab_pool_create": (_pointer, [_i32, _pointer, _pointer, _i64]),
    "moelab_pool_pinned": (_i32, [_pointer]),
    "moelab_pool_start": (None, [_pointer, WORK, _pointer]),
    "moelab_pool_wait": (None, [_pointer]),
    "moelab_pool_destroy": (None, [_pointer]),
    "moelab_moe_forward": (_i32, [_pointer, _pointer]),
    "moelab_linear_forward": (_i32, [_pointer, _pointer]),
    "moelab_run_ops": (_i32, [_pointer, _pointer, _i64, ctypes.POINTER(_i64)]),
    "moelab_attention_chunks": (_i64, [_i64]),
    "moelab_attend": (_pointer, [_text, _i32]),
    "moelab_num_read_loops": (_i32, []),
    "moelab_read_loop_name": (_text, [_i32]),
    "moelab_read": (_u64, [_i32, _pointer, _u64]),
    "moelab_read_all": (_u64, [_pointer, _i32, _pointer, _i64, _u64, _u64]),
    "moelab_read_nodes": (_u64, [_pointer, _i32, _pointer, _pointer, _i32, _u64, _u64, _pointer]),
    "moelab_peak": (_u64, [_pointer, _text, _i32, _i64]),
    "moelab_pack": (_i32, [_i32, _pointer, _pointer, _pointer, _i64, _i64]),
    "moelab_quantise_pack": (_i32, [_i32, _pointer, _i32, _pointer, _i64, _i64]),
}


def require_library() -> ctypes.CDLL:
    """The library; raises ``RuntimeError`` with the reason where there is none."""
    loaded, why = library()
    if loaded is None:
        raise RuntimeError(f"native kernels: {why}, or choose isa 'numba'")
    return loaded


def kernel_table(isa: str, weight_format: WeightFormat, activation: Activation) -> KernelTable:
    """The phase functions of one ISA; raises ``ValueError`` where it has none for this format and mode."""
    table = sized(KernelTable)
    status = require_library().moelab_kernels(
        isa.encode(), FORMAT_CODE[weight_format], activation_code(activation, weight_format, isa), ctypes.byref(table)
    )
    if isa == "amx" and status == _UNSUPPORTED:
        raise ValueError(f"isa amx has no kernel for {weight_format} x {activation}: choose amx+avx512 or avx512")
    check_status(status, f"kernels of {isa} for {weight_format} x {activation}")
    return table


def check_status(status: int, what: str) -> None:
    if status != 0:
        raise ValueError(f"{what}: expected status 0; got {status} ({STATUS.get(status, 'unknown')})")
