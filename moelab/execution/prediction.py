"""The prediction of a replay row, made from the machine document before anything is measured. Floor 4.

Knows that a layer-step takes its bytes over the rate plus a fixed overhead. Over memory the rate is the
node's read rate times the kernels' efficiency; for weights that fit the cache it is the read rate over
those very bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from moelab.cost_model.one_node import predict
from moelab.domain.machine import Machine


@dataclass(frozen=True)
class Prediction:
    """``read_gb_per_s`` is the limit that the prediction assumed; only it may be replaced afterwards."""

    bytes_per_token: float
    layer_steps_per_token: float
    read_gb_per_s: float
    efficiency: float
    layer_overhead_s: float

    def ms_per_token(self, read_gb_per_s: float | None = None, bytes_per_token: float | None = None) -> float:
        """Milliseconds per token; with the read limit of the run, or for other bytes (a fast tier)."""
        return predict(
            read_bytes=self.bytes_per_token if bytes_per_token is None else bytes_per_token,
            num_layer_steps=self.layer_steps_per_token,
            num_tokens=1,
            read_gb_per_s=self.read_gb_per_s if read_gb_per_s is None else read_gb_per_s,
            efficiency=self.efficiency,
            layer_overhead_s=self.layer_overhead_s,
        )["predicted_ms_per_token"]


def predict_row(
    machine: Machine, *, bytes_per_token: float, layer_steps_per_token: float, kernel: str,
    cache_read_gb_per_s: float | None = None,
) -> Prediction:  # fmt: skip
    """Prediction for one row; ``kernel`` is ``isa/weight format/activation``.

    ``cache_read_gb_per_s`` replaces the node's rate (and drops the efficiency, which was measured over
    memory). A preset has no efficiency or overhead: then 1 and 0 are assumed, which makes it a ceiling.
    """
    node_rate = machine.nodes[0].best_read_gb_per_s
    rate = cache_read_gb_per_s or node_rate
    if rate is None:
        raise ValueError(
            f"machine {machine.name} has no read rate, expected read_gb_per_s of {machine.nodes[0].name}: "
            "leave --machine out to probe this machine"
        )
    return Prediction(
        bytes_per_token=bytes_per_token,
        layer_steps_per_token=layer_steps_per_token,
        read_gb_per_s=rate,
        efficiency=1.0 if cache_read_gb_per_s else machine.kernel_efficiency.get(kernel, 1.0),
        layer_overhead_s=machine.layer_overhead_s or 0.0,
    )
