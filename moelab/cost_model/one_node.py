"""one_node: time of a layer-step and of a token from the bytes that one NUMA node reads.  Floor 1.

    layer-step time = bytes read / (read rate x efficiency) + layer overhead

The read rate is what a pure read loop reaches on this memory, the efficiency what the expert kernels
reach of it; both are given, never guessed, so that a prediction stands before the measurement and
only the read limit of the same run may replace the rate in it. Does not know: compute bounds
(large prefill batches), overlap with a fast tier, several nodes (the slowest decides there),
contention by uploads beyond their bytes, attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moelab.domain.units import GB


def _check_rate(read_gb_per_s: float, efficiency: float) -> None:
    if not read_gb_per_s > 0:
        raise ValueError(f"read rate is {read_gb_per_s} GB/s, expected more than 0: probe the machine first")
    if not efficiency > 0:
        raise ValueError(f"efficiency is {efficiency}, expected more than 0 (kernel rate / read rate)")


def layer_step_s(
    read_bytes: Any, *, read_gb_per_s: float, efficiency: float = 1.0, layer_overhead_s: float = 0.0
) -> np.ndarray:
    """Seconds of layer-steps from the bytes each reads; any shape in, the same shape out."""
    _check_rate(read_gb_per_s, efficiency)
    return np.asarray(read_bytes, np.float64) / (read_gb_per_s * GB * efficiency) + layer_overhead_s


def predict(
    *,
    read_bytes: float,
    num_layer_steps: float,
    num_tokens: int,
    read_gb_per_s: float,
    efficiency: float = 1.0,
    layer_overhead_s: float = 0.0,
) -> dict[str, float]:
    """Prediction for ``num_tokens`` tokens whose ``num_layer_steps`` layer-steps read ``read_bytes`` in sum.

    Keys: ``predicted_ms_per_token``, ``predicted_tok_per_s``, and what it rests on (``read_bytes_per_token``,
    ``layer_steps_per_token``, ``read_gb_per_s``, ``efficiency``, ``layer_overhead_s``).
    """
    _check_rate(read_gb_per_s, efficiency)
    if num_tokens < 1:
        raise ValueError(f"num_tokens is {num_tokens}, expected at least 1: choose a phase that the trace has")
    bytes_per_token, steps_per_token = read_bytes / num_tokens, num_layer_steps / num_tokens
    token_s = bytes_per_token / (read_gb_per_s * GB * efficiency) + steps_per_token * layer_overhead_s
    return {
        "predicted_ms_per_token": 1e3 * token_s,
        "predicted_tok_per_s": 1 / token_s if token_s > 0 else float("inf"),
        "read_bytes_per_token": bytes_per_token,
        "layer_steps_per_token": steps_per_token,
        "read_gb_per_s": read_gb_per_s,
        "efficiency": efficiency,
        "layer_overhead_s": layer_overhead_s,
    }
