"""The prediction of a replay row by what this kernel was calibrated to take at this expert shape. Floor 4.

Entries (which node computes which part of which expert, for how many tokens) are those that ``dispatch`` will choose,
as the kernels ask it; the slowest node decides each layer-step (``cost_model.node_time``). Knows nothing of weights
that fit the cache, whose times were never calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.cost_model.node_time import layer_steps_s
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.machine import Machine
from moelab.domain.trace import NO_EXPERT
from moelab.execution.execute import Work
from moelab.execution.served import served
from moelab.execution.weights import ReplayWeights
from moelab.kernels import Pool


@dataclass(frozen=True, eq=False)
class CalibratedSteps:
    """Arrays [M] as ``layer_steps_s`` takes them, layer-steps in the order of steps and layers; ``step_tokens``
    [steps]."""

    times: ExpertTimes
    layer_step: np.ndarray
    node: np.ndarray
    part: np.ndarray
    num_tokens: np.ndarray
    step_tokens: np.ndarray
    num_layers: int
    num_nodes: int

    def ms_per_token(self, read_gb_per_s: float | None = None) -> float:
        """Milliseconds per token, the median over steps as in the measurement.

        ``read_gb_per_s`` of all nodes together while all read replaces the calibrated rates by that of the run.
        """
        rate = None if read_gb_per_s is None else {self.num_nodes: read_gb_per_s / self.num_nodes}
        seconds = layer_steps_s(
            self.times, step=self.layer_step, node=self.node, part=self.part, num_tokens=self.num_tokens,
            tokens_of_step=np.repeat(self.step_tokens, self.num_layers), num_nodes=self.num_nodes, read_gb_per_s=rate,
        )  # fmt: skip
        return float(np.median(1e3 * seconds.reshape(-1, self.num_layers).sum(axis=1) / self.step_tokens))


def times_for(machine: Machine, weights: ReplayWeights, pool: Pool, kernel: str) -> ExpertTimes | None:
    """Of this kernel at this shape, on as many nodes of as many workers; ``None`` where nobody measured that."""
    layout = weights.layout
    times = machine.times_of(layout.hidden_size, layout.intermediate_size, kernel)
    if times is None or len(machine.nodes) != weights.num_nodes:
        return None
    workers = [pool.node_of_worker.count(node) for node in range(weights.num_nodes)]
    return times if times.has_workers(workers) else None


def calibrated_steps(times: ExpertTimes, weights: ReplayWeights, work: Work) -> CalibratedSteps:
    """What ``work`` will compute, placed as ``weights`` are."""
    columns = []
    num_layers = work.ids[0].shape[1]
    for step, ids in enumerate(work.ids):
        for layer in range(num_layers):
            of_layer = ids[:, layer]
            found = served(weights.arenas[layer], of_layer)
            tokens = np.bincount(
                of_layer[of_layer != NO_EXPERT].ravel(), minlength=int(found.experts.max(initial=0)) + 1
            )
            number = np.full(len(found.nodes), step * num_layers + layer)
            columns.append(np.stack([number, found.nodes, found.num_bytes, tokens[found.experts]]))
    layer_step, node, num_bytes, num_tokens = np.concatenate(columns, axis=1)
    return CalibratedSteps(
        times=times, layer_step=layer_step, node=node, part=num_bytes / weights.layout.expert_bytes,
        num_tokens=num_tokens, step_tokens=np.array([len(ids) for ids in work.ids]), num_layers=num_layers,
        num_nodes=weights.num_nodes,
    )  # fmt: skip
