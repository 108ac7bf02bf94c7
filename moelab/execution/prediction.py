"""The prediction of a replay row, made from the machine document before anything is measured. Floor 4.

Knows that a layer-step takes its bytes over the rate plus a fixed overhead, and what calibrated times say beside that
(``calibrated``) where the machine has them for this kernel, shape and these nodes. Over memory the rate is the
node's read rate times the kernels' efficiency; for weights that fit the cache it is the read rate over
those very bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from moelab.cost_model.one_node import layer_step_s
from moelab.domain.machine import Machine
from moelab.execution.calibrated import CalibratedSteps


@dataclass(frozen=True)
class Prediction:
    """``read_gb_per_s`` is the limit that the prediction assumed; only it may be replaced afterwards.

    ``step_bytes`` and ``step_tokens`` [steps] describe the steps that were to run, ``num_layers`` the
    layer-steps of each. Of several nodes ``step_bytes`` are those of the slowest (``deciding_bytes``), by whose rates
    says ``slowness_of``. ``efficiency`` 1 with ``efficiency_measured`` false is a ceiling.
    """

    step_bytes: np.ndarray
    step_tokens: np.ndarray
    num_layers: int
    read_gb_per_s: float
    efficiency: float
    efficiency_measured: bool
    layer_overhead_s: float
    calibrated: CalibratedSteps | None = None
    slowness_of: str = "one node"
    made_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def ms_per_token(self, read_gb_per_s: float | None = None, bytes_share: float = 1.0) -> float:
        """Milliseconds per token, the median over steps as in the measurement.

        ``read_gb_per_s`` replaces the assumed limit by that of the run; ``bytes_share`` is the share of
        the reads that a fast tier leaves.
        """
        step_s = layer_step_s(
            bytes_share * self.step_bytes,
            read_gb_per_s=self.read_gb_per_s if read_gb_per_s is None else read_gb_per_s,
            efficiency=self.efficiency,
            layer_overhead_s=self.num_layers * self.layer_overhead_s,
        )
        return float(np.median(1e3 * step_s / self.step_tokens))

    def to_dict(self, name: str) -> dict[str, Any]:
        """What is stored before the measurement begins."""
        return {
            "name": name,
            "made_at": self.made_at,
            "predicted_ms_per_token": self.ms_per_token(),
            "read_gb_per_s": self.read_gb_per_s,
            "efficiency": self.efficiency,
            "efficiency_measured": self.efficiency_measured,
            "layer_overhead_s": self.layer_overhead_s,
            "slowest_node_by": self.slowness_of,
            "predicted_ms_per_token_calibrated": None if self.calibrated is None else self.calibrated.ms_per_token(),
            "calibrated_times": None if self.calibrated is None else self.calibrated.times.name,
            "steps": len(self.step_bytes),
        }


def predict_row(
    machine: Machine, *, step_bytes: np.ndarray, step_tokens: np.ndarray, num_layers: int, kernel: str,
    cache_read_gb_per_s: float | None = None, calibrated: CalibratedSteps | None = None, slowness_of: str = "one node",
) -> Prediction:  # fmt: skip
    """Prediction for one row; ``kernel`` is ``isa/weight format/activation``.

    ``cache_read_gb_per_s`` replaces the node's rate (and drops the efficiency, which was measured over
    memory). A preset has no efficiency or overhead: then 1 and 0 are assumed, which makes it a ceiling.
    """
    rate = cache_read_gb_per_s or machine.read_gb_per_s
    if rate is None:
        raise ValueError(
            f"machine {machine.name} has no read rate, expected read_gb_per_s of {machine.nodes[0].name}: "
            "leave --machine out to probe this machine"
        )
    efficiency = None if cache_read_gb_per_s else machine.kernel_efficiency.get(kernel)
    return Prediction(
        step_bytes=step_bytes,
        step_tokens=step_tokens,
        num_layers=num_layers,
        read_gb_per_s=rate,
        efficiency=1.0 if efficiency is None else efficiency,
        efficiency_measured=efficiency is not None,
        layer_overhead_s=machine.layer_overhead_s or 0.0,
        calibrated=calibrated,
        slowness_of=slowness_of,
    )
