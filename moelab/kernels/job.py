"""The job of one layer-step, as bytes: the NumPy twin of ``moelab_moe_job`` in kernels/moelab_kernels.h.

One record serves the native library (its address is passed through ctypes) and the Numba kernels
(they read the same record through the address), so both see the same buffers. Knows field order and
the numbers of the enums; does not know who owns the buffers. Floor 1: NumPy only.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

WeightFormat = Literal["float32", "bf16", "int4_g32", "int8_g32"]
Activation = Literal["f32", "bf16", "int8"]

WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
FORMAT_CODE = {name: code for code, name in enumerate(WEIGHT_FORMATS)}
ACTIVATION_CODE = {name: code for code, name in enumerate(ACTIVATIONS)}

# What mode bf16 is beside quantised weights in every native ISA but amx: see kernels/moelab_kernels.h.
INT16_CODE = 3

# Which activation modes each weight format has; the first is the default.
ACTIVATIONS_OF_FORMAT: dict[WeightFormat, tuple[Activation, ...]] = {
    "float32": ("f32",),
    "bf16": ("bf16",),
    "int4_g32": ("int8", "bf16"),
    "int8_g32": ("int8", "bf16"),
}

ABI_VERSION = 8
GROUP = 32
TILE_ROWS = 16
TILE_COLUMNS = 64
SILU = 0


def activation_code(activation: Activation, weight_format: WeightFormat, isa: str) -> int:
    """The number of the mode in ``moelab_activation_mode``.

    Mode bf16 promises 16 bits a number and at most the error of bf16. Quantised weights are multiplied with integers of
    16 bits where the ISA does so; AMX has tiles for bf16, and Numba float32 vectors.
    """
    if activation == "bf16" and weight_format in ("int4_g32", "int8_g32") and isa not in ("amx", "numba"):
        return INT16_CODE
    return ACTIVATION_CODE[activation]


def carried(activation: Activation, weight_format: WeightFormat, isa: str) -> str:
    """The numbers that a mode multiplies with: its own, or ``int16`` where mode bf16 has those.

    Groups that bf16 suits better stay in it there: see ``activation_code``.
    """
    return "int16" if activation_code(activation, weight_format, isa) == INT16_CODE else activation


# Addresses are int64: user-space addresses fit, and Numba computes with them.
MOE_JOB = np.dtype(
    [
        ("struct_bytes", np.uint32),
        ("abi_version", np.uint32),
        ("weight_format_of_projection", np.int32, (3,)),
        ("activation_mode", np.int32),
        ("activation_function", np.int32),
        ("activation_constants", np.float32, (4,)),
        ("hidden_size", np.int64),
        ("intermediate_size", np.int64),
        ("num_experts", np.int64),
        ("num_pairs", np.int64),
        ("num_tokens", np.int64),
        ("expert_weights", np.int64),
        ("expert_biases", np.int64),
        ("pair_start", np.int64),
        ("token_of_pair", np.int64),
        ("tokens_q", np.int64),
        ("tokens_scale", np.int64),
        ("tokens_offset", np.int64),
        ("hidden_q", np.int64),
        ("hidden_scale", np.int64),
        ("hidden_offset", np.int64),
        ("output", np.int64),
        ("placement", np.int64),
    ],
    align=True,
)
