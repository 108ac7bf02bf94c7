"""moving_reads: what each of several nodes reads where a policy moves experts between them and a fast tier.

From the log of decisions it is known what was resident at every request; what was not is served by the copies that
``dispatch`` chooses for that step (``node_reads``, as replay and engine). An expert that is copied to the fast tier is
read from its first copy: of each piece the one on the lowest node, as the engine's copy thread does. Does not know time
or policies. Floor 2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import types

from moelab.compiled_on_use import on_use
from moelab.domain.plan import Plan
from moelab.policies.requests import Requests
from moelab.policies.signature import EVICT
from moelab.simulator.node_reads import node_reads
from moelab.simulator.planned_pieces import planned_bytes


def moving_reads(
    plan: Plan,
    requests: Requests,
    resident: np.ndarray,
    log: np.ndarray,
    slowness: np.ndarray,
    hidden_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes int64 [S, L, N] of misses, and of the sources of copies, at the layer that asked for them.

    Between them float64 [S, L], how far dispatch may be from the best (``node_reads``).

    ``resident`` bool [L, E] before the first request; ``log`` int64 [*, 5] as ``simulate(log=True)`` keeps it;
    ``slowness`` float64 [N]: time of a byte. ``hidden_size``: of the model, for the bytes of pieces.
    """
    missed = np.zeros(len(requests.experts), np.bool_)
    _find_misses(
        requests.offsets, requests.experts, requests.num_layers, np.array(resident, np.bool_),
        np.ascontiguousarray(log, np.int64), missed,
    )  # fmt: skip
    nowhere = np.zeros(resident.shape, bool)
    reads, excess, _ = node_reads(plan, _only(requests, missed), nowhere, slowness, hidden_size=hidden_size)
    source = _source_bytes(plan, len(slowness), hidden_size)
    copied = log[log[:, 1] != EVICT]
    copies = np.zeros((requests.num_requests, len(slowness)), np.int64)
    np.add.at(copies, copied[:, 0], source[copied[:, 2], copied[:, 3]])
    return reads, excess, copies.reshape(reads.shape)


def _only(requests: Requests, wanted: np.ndarray) -> Requests:
    """The same requests with a part of their experts."""
    before = np.concatenate([[0], np.cumsum(wanted)])
    return replace(
        requests, offsets=before[requests.offsets], experts=requests.experts[wanted],
        token_counts=requests.token_counts[wanted], gate_sums=requests.gate_sums[wanted],
    )  # fmt: skip


def _source_bytes(plan: Plan, num_nodes: int, hidden_size: int | None) -> np.ndarray:
    """int64 [L, E, N]: what a copy to the fast tier reads on each node."""
    columns = plan.placements.arrays()
    nodes = [tier for tier in plan.tiers if tier.startswith("node")]
    number = np.array([nodes.index(tier) if tier in nodes else num_nodes for tier in plan.tiers])[columns["tier"]]
    rows = np.stack([columns["layer"], columns["expert"], columns["start"], columns["stop"], number], axis=1)
    rows = np.unique(rows[number < num_nodes], axis=0)  # sorted: of each piece the lowest node first
    _, first = np.unique(rows[:, :4], axis=0, return_index=True)
    layer, expert, start, stop, node = rows[first].T
    out = np.zeros((plan.model.num_layers, plan.model.num_experts, num_nodes), np.int64)
    np.add.at(out, (layer, expert, node), planned_bytes(plan, nodes[0], layer, start, stop, hidden_size))
    return out


_i64 = types.int64
_signature = types.void(
    types.Array(_i64, 1, "C", readonly=True),  # offsets [R + 1]
    types.Array(types.int32, 1, "C", readonly=True),  # experts [N]
    _i64,
    types.boolean[:, ::1],  # resident [L, E], changed
    types.Array(_i64, 2, "C", readonly=True),  # log [*, 5]
    types.boolean[::1],  # missed [N], out
)


@on_use(_signature, rooms=("policies",))
def _find_misses(offsets, experts, num_layers, resident, log, missed):
    """Hits are judged against what was resident before the request, as the policy's contract says."""
    row = 0
    for request in range(len(offsets) - 1):
        while row < len(log) and log[row, 0] < request:
            resident[log[row, 2], log[row, 3]] = log[row, 1] != EVICT
            row += 1
        layer = request % num_layers
        for place in range(offsets[request], offsets[request + 1]):
            missed[place] = not resident[layer, experts[place]]
