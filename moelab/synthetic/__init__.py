"""Floor 2. Synthetic routing: a generator with latents of request, time and token. Everything of it says synthetic."""

from __future__ import annotations

from moelab.synthetic.calibrated import CALIBRATED, parameters_for
from moelab.synthetic.folder import write
from moelab.synthetic.generate import generate
from moelab.synthetic.parameters import RoutingParameters
from moelab.synthetic.shape import RoutingShape
from moelab.synthetic.workload import Workload

__all__ = ["CALIBRATED", "RoutingParameters", "RoutingShape", "Workload", "generate", "parameters_for", "write"]
