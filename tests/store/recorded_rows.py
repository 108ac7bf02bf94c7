"""Rows whose every value follows from the row number: any part of a recording can be checked exactly."""

import tempfile
from pathlib import Path

import numpy as np

from moelab.domain.trace import NO_EXPERT, TOKEN_COLUMNS, TokenTable, Trace, TraceHeader

PERIOD = 1009


def header(num_layers=2, num_experts=40, top_k=3, **changes):
    return TraceHeader(
        **{
            "model": "toy", "model_type": "toy_moe", "num_layers": num_layers, "num_experts": num_experts,
            "top_k": top_k, "model_layer_of_layer": tuple(range(1, num_layers + 1)), "expert_bytes": (0,) * num_layers,
            "gate_weight_kind": "normalised", "engine": "tests", "quantization": "none", "licence": "Apache-2.0",
            "provenance": "tests/store", "synthetic": True, "domains": ("code", "law"), **changes,
        }
    )  # fmt: skip


class Rows:
    """``take(start, stop)`` is the trace of these row numbers, for any range."""

    def __init__(self, header, seed):
        rng = np.random.default_rng(seed)
        shape = (PERIOD, header.num_layers, header.top_k)
        self.header = header
        self._experts = rng.integers(0, header.num_experts, shape).astype(np.uint16)
        self._experts[rng.random(shape) < 0.05] = NO_EXPERT
        self._gates = rng.random(shape).astype(np.float16)
        self._residency = rng.integers(0, 2, shape).astype(np.uint8)

    def take(self, start, stop):
        row = np.arange(start, stop)
        tokens = TokenTable.build(
            step=row // 3,
            request=row // 50,
            position=row % 50,
            phase=row % 7 == 0,
            domain=row % 3 - 1,
            token_id=row * 7,
        )
        at = row % PERIOD
        return Trace(self.header, self._experts[at], self._gates[at], tokens, {"residency": self._residency[at]})


def append(writer, trace):
    writer.append(trace.experts, trace.gate_weights, trace.tokens, **trace.extras)


def difference(got, expected):
    """Name of the first array that differs in dtype, shape or any bit, or ``None``."""
    if got.header != expected.header:
        return "header"
    pairs = {name: (getattr(got.tokens, name), getattr(expected.tokens, name)) for name in TOKEN_COLUMNS}
    pairs |= {name: (getattr(got, name), getattr(expected, name)) for name in ("experts", "gate_weights")}
    if set(got.extras) != set(expected.extras):
        return "extras"
    pairs |= {name: (got.extras[name], expected.extras[name]) for name in expected.extras}
    for name, (a, b) in pairs.items():
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            return name
    return None


def assert_equal(got, expected):
    assert difference(got, expected) is None


def in_memory():
    """Temporary folder in memory where the system has one: a kill loses no page cache, a disk only costs fsyncs."""
    shared_memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None)
