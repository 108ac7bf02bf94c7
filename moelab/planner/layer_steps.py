"""layer_steps: what each layer routes in each step, as sets of distinct experts.  Floor 3.

What a placement is judged on. A layer-step is the SET of experts that one layer uses in one forward pass: at batch 1 a
token's, for batches the union over the pass as it was recorded. ``steps="token"`` takes every token as a pass of its
own, so that prefill-only captures can be judged as decode at batch 1; plans and tables say which. Experts are numbered
through all layers, ``key = layer x E + expert``. Does not know tiers, bytes or placements.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from moelab.domain.trace import NO_EXPERT, Trace

StepKind = Literal["step", "token"]
STEP_KINDS: tuple[StepKind, ...] = ("step", "token")


@dataclass(frozen=True, eq=False)
class LayerSteps:
    """S layer-steps that route anything, layer by layer, in the order of steps.

    ``offsets`` int64 [S + 1] into ``keys`` int32 (rising within a layer-step); ``layer`` int32 [S]; ``cluster`` int64
    [S]: the request, or the group of requests that share steps, that the bootstrap draws together, below
    ``num_clusters``. ``tokens_of_expert``: mean tokens of an expert in a layer-step that uses it (more than 1 in
    batches), of the trace that these are of.
    """

    num_layers: int
    num_experts: int
    offsets: np.ndarray
    keys: np.ndarray
    layer: np.ndarray
    cluster: np.ndarray
    num_clusters: int
    tokens_of_expert: float = 1.0

    @property
    def num_layer_steps(self) -> int:
        return len(self.layer)

    @property
    def sizes(self) -> np.ndarray:
        """int64 [S]: distinct experts of each layer-step."""
        return np.diff(self.offsets)

    @cached_property
    def uses(self) -> np.ndarray:
        """int64 [L, E]: layer-steps that use each expert."""
        flat = np.bincount(self.keys, minlength=self.num_layers * self.num_experts)
        return flat.reshape(self.num_layers, self.num_experts)

    @cached_property
    def inverted(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets int64 [L E + 1], layer-steps int32): where each expert is used, in rising order."""
        step = np.repeat(np.arange(self.num_layer_steps, dtype=np.int32), self.sizes)
        order = np.argsort(self.keys, kind="stable")
        return np.concatenate([[0], np.cumsum(self.uses.ravel())]), step[order]

    @classmethod
    def of_trace(cls, trace: Trace, steps: StepKind = "step") -> LayerSteps:
        """Layer-steps of all tokens of ``trace``; raises ``ValueError`` for another kind of step or no tokens."""
        if steps not in STEP_KINDS:
            raise ValueError(f"steps is {steps!r}, expected step (as recorded) or token (each token its own)")
        if not trace.num_tokens:
            raise ValueError(
                f"the trace of {trace.header.model} has no tokens to plan on: choose another phase or part"
            )
        num_layers, num_experts = trace.header.num_layers, trace.header.num_experts
        pass_of_token = np.arange(trace.num_tokens) if steps == "token" else trace.tokens.step
        step = np.unique(pass_of_token, return_inverse=True)[1]
        cluster_of_step, num_clusters = clusters_of_steps(step, trace.tokens.request)
        keys, layers, of_steps, sizes, num_routings = [], [], [], [], 0
        for layer in range(num_layers):
            ids = trace.experts[:, layer]
            row, _ = routed = np.nonzero(ids != NO_EXPERT)
            num_routings += len(row)
            pair = np.unique(step[row] * num_experts + ids[routed])
            used, counts = np.unique(pair // num_experts, return_counts=True)
            keys.append((layer * num_experts + pair % num_experts).astype(np.int32))
            layers.append(np.full(len(used), layer, np.int32))
            of_steps.append(used)
            sizes.append(counts)
        return cls(
            num_layers=num_layers,
            num_experts=num_experts,
            offsets=np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64),
            keys=np.concatenate(keys),
            layer=np.concatenate(layers),
            cluster=cluster_of_step[np.concatenate(of_steps)],
            num_clusters=num_clusters,
            tokens_of_expert=float(num_routings / max(1, sum(len(each) for each in keys))),
        )

    def take(self, chosen: np.ndarray) -> LayerSteps:
        """Some layer-steps, by rising index or mask; clusters keep their numbers."""
        index = np.arange(self.num_layer_steps)[chosen]
        sizes = self.sizes[index]
        start = np.repeat(self.offsets[index] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        return LayerSteps(
            num_layers=self.num_layers,
            num_experts=self.num_experts,
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            keys=self.keys[start + np.arange(sizes.sum())],
            layer=self.layer[index],
            cluster=self.cluster[index],
            num_clusters=self.num_clusters,
            tokens_of_expert=self.tokens_of_expert,
        )


def groups_of_requests(trace: Trace, steps: StepKind = "step") -> tuple[np.ndarray, int]:
    """(group int64 of each request in rising order of their ids, number of groups): those that share steps are one."""
    _, of_request = np.unique(trace.tokens.request, return_inverse=True)
    num_requests = int(of_request.max(initial=-1)) + 1
    if steps == "token":
        return np.arange(num_requests), num_requests
    return _linked(np.unique(trace.tokens.step, return_inverse=True)[1], of_request)


def clusters_of_steps(step: np.ndarray, request: np.ndarray) -> tuple[np.ndarray, int]:
    """(cluster of each step, their number): requests that share a step, directly or through others, are one cluster."""
    _, of_request = np.unique(request, return_inverse=True)
    group, num_groups = _linked(step, of_request)
    cluster = np.empty(int(step.max()) + 1, np.int64)
    cluster[step] = group[of_request]  # all tokens of a step say the same
    return cluster, num_groups


def _linked(step: np.ndarray, request: np.ndarray) -> tuple[np.ndarray, int]:
    """(group of each request, their number), numbered in the order of their first requests; by token: step, request."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_steps, num_requests = int(step.max()) + 1, int(request.max()) + 1
    pairs = np.unique(step * num_requests + request)
    links = coo_array(
        (np.ones(len(pairs), np.int8), (pairs // num_requests, num_steps + pairs % num_requests)),
        shape=(num_steps + num_requests,) * 2,
    )
    num_groups, label = connected_components(links, directed=False)
    _, first, group = np.unique(label[num_steps:], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group], num_groups
