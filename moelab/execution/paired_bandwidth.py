"""GB/s and percent of the read limit of a replay by layer and node: medians over steps, each beside its paired read.

Bytes and times of the kernels are those that they counted; the limit of a step is the paired read of that step, so
that the drift of a shared machine cancels. Floor 4.
"""

from __future__ import annotations

import numpy as np

from moelab.execution.execute import Measurement
from moelab.kernels import Bandwidth, BandwidthRow


def paired_bandwidth(
    title: str, measured: Measurement, *, virtual_nodes: bool, cache_resident: bool, limited: bool
) -> Bandwidth:
    """``limited``: percentages are given (the read limit is one of memory)."""
    num_bytes = np.stack([counts.num_bytes for counts in measured.counts])  # [steps, L, N]
    seconds = np.stack([counts.seconds for counts in measured.counts])
    tail_s = np.stack([counts.tail_s for counts in measured.counts])  # [steps, L]
    limits = _rate(measured.read_bytes_of_node, measured.read_s_of_node)  # [steps, N]
    steps, num_layers, num_nodes = num_bytes.shape

    def row(layer: int | None, node: int) -> BandwidthRow:
        at = slice(None) if layer is None else slice(layer, layer + 1)
        layers = num_layers if layer is None else 1
        rates = _rate(num_bytes[:, at, node].sum(axis=1), seconds[:, at, node].sum(axis=1))
        percent = _median(100 * rates / limits[:, node]) if limited else np.nan
        tail_us = 1e6 * _median(tail_s[:, at].sum(axis=1)) / layers
        return BandwidthRow(
            layer=layer, node=node, num_calls=steps * layers, num_bytes=int(num_bytes[:, at, node].sum()),
            ms_per_call=1e3 * _median(seconds[:, at, node].sum(axis=1)) / layers,
            gb_per_s=float(np.nan_to_num(_median(rates))),
            read_limit_gb_per_s=float(np.nan_to_num(_median(limits[:, node]))),
            percent_of_read_limit=None if np.isnan(percent) else percent,
            tail_us_per_call=None if np.isnan(tail_us) else tail_us,
        )  # fmt: skip

    return Bandwidth(
        title, tuple(row(layer, node) for layer in range(num_layers) for node in range(num_nodes)),
        tuple(row(None, node) for node in range(num_nodes)), measured.read_loop, virtual_nodes, cache_resident,
        "medians over steps; the percentage of a step is of the read that was paired with it",
    )  # fmt: skip


def imbalance(measured: Measurement) -> float:
    """Mean over layer-steps of the bytes of the node that reads most over the mean of all nodes; 1 is even."""
    num_bytes = np.concatenate([counts.num_bytes for counts in measured.counts]).astype(float)  # [steps x L, N]
    read = num_bytes.sum(axis=1) > 0
    return float((num_bytes[read].max(axis=1) / num_bytes[read].mean(axis=1)).mean()) if read.any() else 1.0


def _rate(num_bytes: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """GB/s; NaN where nothing was read."""
    rate = np.full(np.shape(num_bytes), np.nan)
    return np.divide(num_bytes, 1e9 * seconds, out=rate, where=(num_bytes > 0) & (seconds > 0))


def _median(values: np.ndarray) -> float:
    """Of those that are there; NaN without any."""
    there = values[~np.isnan(values)]
    return float(np.median(there)) if there.size else float("nan")
