"""Really executes the routed experts of a trace, step by step, beside a pure read of as many of the same bytes.

Knows time and bytes. Every step is run and every step's bytes are read by the best read loop with the
workers that the kernels would use; a run is paired with the read of a step half the replay away, so that
neither finds in the cache what the other has just touched. The ratio of the two is what a shared machine
cannot spoil. Where experts are placed on several nodes the read is too: each node's workers read their own bytes, all
nodes at once. What the kernels count by layer and node is taken after every step. Floor 4.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moelab.domain.trace import Trace
from moelab.execution.folding import Folding
from moelab.execution.served import served
from moelab.execution.steps import Steps, distinct_experts
from moelab.execution.weights import ReplayWeights
from moelab.kernels import Counts, Pool, read_limit, read_nodes, read_once

_INPUT_VECTORS = 64
_MIN_STEPS = 4
_LOOP_STEPS = 4  # steps whose bytes choose the best read loop


@dataclass(frozen=True)
class Measurement:
    """Per step: seconds of the kernels, seconds of the paired read, bytes of both, tokens.

    ``counts`` are the kernels' own, one for each step; ``read_s_of_node`` and ``read_bytes_of_node`` [steps, N] are of
    the paired read. ``outputs`` holds y float32 [T, H] of the sampled (step, layer) as they were measured.
    """

    kernel_s: np.ndarray
    read_s: np.ndarray
    step_bytes: np.ndarray
    read_bytes: np.ndarray
    step_tokens: np.ndarray
    layer_steps: int
    read_loop: str
    counts: list[Counts]
    read_s_of_node: np.ndarray
    read_bytes_of_node: np.ndarray
    outputs: dict[tuple[int, int], np.ndarray]

    @property
    def read_limit(self) -> np.ndarray:
        """GB/s of each step's paired read [steps]; of several nodes the sum of what each read meanwhile.

        The sum is what an even placement could reach, so that an uneven one loses percents. A step in which a node had
        nothing to read takes that node's median.
        """
        if self.read_s_of_node.shape[1] == 1:
            return self.read_bytes / self.read_s / 1e9
        rates = np.full(self.read_s_of_node.shape, np.nan)
        np.divide(self.read_bytes_of_node, 1e9 * self.read_s_of_node, out=rates, where=self.read_s_of_node > 0)
        of_node = [np.median(r[~np.isnan(r)]) if (~np.isnan(r)).any() else 0.0 for r in rates.T]
        return np.where(np.isnan(rates), of_node, rates).sum(axis=1)

    @property
    def ms_per_token(self) -> float:
        """Median over the steps: on a shared machine a mean is the neighbours' doing."""
        return float(np.median(1e3 * self.kernel_s / self.step_tokens))

    @property
    def ms_per_token_quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(1e3 * self.kernel_s / self.step_tokens, (25, 75))
        return float(low), float(high)

    @property
    def gb_per_s(self) -> float:
        """Median over the steps."""
        return float(np.median(self.step_bytes / self.kernel_s) / 1e9)

    @property
    def read_gb_per_s(self) -> float:
        """Median over the steps of the paired read."""
        return float(np.median(self.read_limit))

    @property
    def percent_of_read_limit(self) -> tuple[float, float, float]:
        """(median, lower, upper quartile) of the paired ratios, in percent."""
        ratio = self.step_bytes / self.kernel_s / 1e9 / self.read_limit
        middle, low, high = np.percentile(100 * ratio, (50, 25, 75))
        return float(middle), float(low), float(high)


@dataclass(frozen=True)
class Work:
    """What the kernels get: folded ids of each taken step and layer, gate weights, inputs."""

    ids: list[np.ndarray]  # per step [T, L, K]
    gates: list[np.ndarray]  # per step [T, L, K] float32
    inputs: np.ndarray  # [vectors, H] float32
    bytes_of_step: np.ndarray

    def input(self, step: int, layer: int) -> np.ndarray:
        """float32 [T, H]: seeded unit-variance vectors; a trace records routing, not hidden states."""
        tokens = len(self.ids[step])
        return self.inputs[(step + 7 * layer + np.arange(tokens)) % len(self.inputs)]


def prepare(trace: Trace, steps: Steps, folding: Folding, hidden_size: int, expert_bytes: int, seed: int = 0) -> Work:
    """Everything that must not be done between two clock readings."""
    ids, gates, step_bytes = [], [], np.zeros(len(steps))
    uniform = not trace.gate_weights.any()
    for step in range(len(steps)):
        rows = steps.rows_of(step)
        experts = trace.experts[rows, : folding.num_layers]
        folded = np.stack([folding.fold(experts[:, layer]) for layer in range(folding.num_layers)], axis=1)
        distinct = sum(len(distinct_experts(folded[:, layer])) for layer in range(folding.num_layers))
        step_bytes[step] = distinct * expert_bytes
        weights = trace.gate_weights[rows, : folding.num_layers].astype(np.float32)
        ids.append(folded)
        gates.append(np.full_like(weights, 1 / trace.header.top_k) if uniform else weights)
    inputs = np.random.default_rng(seed).standard_normal((_INPUT_VECTORS, hidden_size)).astype(np.float32)
    return Work(ids, gates, inputs, step_bytes)


def execute(
    weights: ReplayWeights,
    work: Work,
    pool: Pool,
    *,
    seconds: float | None = None,
    samples: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> Measurement:
    """Run every step once, the paired read before or after it by turns.

    After ``seconds`` no further step begins (a busy machine may be many times slower than predicted); at
    least four run. The outputs of ``samples`` (step, layer) are kept, drawn from the steps that surely run.
    """
    num_layers = work.ids[0].shape[1]
    num_nodes = weights.num_nodes
    # Reads take blocks of one size: whole experts, or of plans that cut them their smallest piece.
    block_bytes = weights.smallest_copy_bytes
    blocks = [
        [served(weights.arenas[layer], ids[:, layer]).blocks(block_bytes) for layer in range(num_layers)]
        for ids in work.ids
    ]
    step_addresses = [np.concatenate([addresses for addresses, _ in layers]) for layers in blocks]
    step_nodes = [np.concatenate([nodes for _, nodes in layers]) for layers in blocks]
    num_steps = len(work.ids)
    kernel_s, read_s, read_bytes = np.zeros(num_steps), np.zeros(num_steps), np.zeros(num_steps)
    read_s_of_node, read_bytes_of_node = np.zeros((num_steps, num_nodes)), np.zeros((num_steps, num_nodes), np.int64)
    counted: list[Counts] = []
    readers = [weights.layers[0].workers(ids.shape[0] * ids.shape[2]) for ids in work.ids]
    best = read_limit(
        np.concatenate(step_addresses[:_LOOP_STEPS]), block_bytes, readers[0], rounds=3,
        node_of_address=np.concatenate(step_nodes[:_LOOP_STEPS]) if num_nodes > 1 else None,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    sampled = {(int(rng.integers(min(_MIN_STEPS, num_steps))), int(rng.integers(num_layers))) for _ in range(samples)}
    outputs: dict[tuple[int, int], np.ndarray] = {}

    def run(step: int) -> None:
        ids, gates = work.ids[step], work.gates[step]
        inputs = [np.ascontiguousarray(work.input(step, layer)) for layer in range(num_layers)]
        results = []
        start = time.perf_counter()
        for layer in range(num_layers):
            results.append(weights.layers[layer].forward(inputs[layer], ids[:, layer], gates[:, layer]))
        kernel_s[step] = time.perf_counter() - start
        counted.append(Counts.of(weights.layers))
        outputs.update({(step, layer): results[layer] for layer in range(num_layers) if (step, layer) in sampled})

    def read(step: int) -> None:
        other = (step + num_steps // 2) % num_steps
        read_bytes[step] = block_bytes * len(step_addresses[other])
        read_bytes_of_node[step] = block_bytes * np.bincount(step_nodes[other], minlength=num_nodes)
        if num_nodes > 1:
            read_s_of_node[step] = read_nodes(step_addresses[other], step_nodes[other], block_bytes, best.loop, pool)
            read_s[step] = read_s_of_node[step].max()
        else:
            read_s[step] = read_once(step_addresses[other], block_bytes, best.loop, readers[other])
            read_s_of_node[step] = read_s[step]

    run(num_steps // 2)  # once for the compiler and the page tables; its counts are where the first step's begin
    stop = np.inf if seconds is None else time.perf_counter() + seconds
    done = 0
    for step in range(num_steps):
        if step >= _MIN_STEPS and time.perf_counter() > stop:
            break
        for part in (run, read) if step % 2 else (read, run):
            part(step)
        done = step + 1
        on_step()
    return Measurement(
        kernel_s=kernel_s[:done], read_s=read_s[:done], step_bytes=work.bytes_of_step[:done],
        read_bytes=read_bytes[:done], step_tokens=np.array([len(ids) for ids in work.ids[:done]]),
        layer_steps=done * num_layers, read_loop=best.loop_name,
        counts=[after - before for before, after in pairwise(counted)],
        read_s_of_node=read_s_of_node[:done], read_bytes_of_node=read_bytes_of_node[:done], outputs=outputs,
    )  # fmt: skip
