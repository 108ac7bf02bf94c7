"""node_reads: bytes that each node reads in each layer-step of a plan of several nodes, copies chosen by ``dispatch``.

The same compiled function chooses here and in replay and engine, job after job in the order of experts and pieces.
Pieces weigh what the kernels count (``planned_pieces``), where the model's
hidden size is known. Knows experts that stay on a fast tier, which no node reads. Does not know policies that move
experts. Floor 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from moelab.dispatch import BOUNDED, dispatch, lower_bound, scratch_length
from moelab.domain.plan import Plan
from moelab.domain.unique_rows import unique_rows
from moelab.policies.requests import Requests
from moelab.simulator.planned_pieces import planned_bytes
from moelab.source_stamp import stamp_of_room, stamped


@dataclass(frozen=True, eq=False)
class ServedPieces:
    """Arrays [M], none where they were not asked for: in ``request`` (step x L + layer) ``node`` computes ``part`` of
    an expert for ``num_tokens`` tokens."""

    request: np.ndarray
    node: np.ndarray
    part: np.ndarray
    num_tokens: np.ndarray


def node_reads(
    plan: Plan,
    requests: Requests,
    on_fast: np.ndarray,
    slowness: np.ndarray,
    *,
    hidden_size: int | None = None,
    keep_pieces: bool = False,
) -> tuple[np.ndarray, np.ndarray, ServedPieces]:
    """Bytes int64 [S, L, N], excess float64 [S, L], and every piece that was read where ``keep_pieces``.

    Excess: how far above what is possible at best the slowest node may be, as a fraction, where the search for the best
    copies was cut off (pieces of unequal sizes with several copies); 0 where the choice is optimal. ``on_fast`` bool
    [L, E]: read by no node; ``slowness`` float64 [N]: time of a byte.
    """
    first, masks, sizes, parts = _pieces(plan, hidden_size)
    most = int(np.diff(first).max(initial=1)) * int(np.diff(requests.offsets).max(initial=1))
    num_nodes = len(slowness)
    out, excess = np.zeros((requests.num_requests, num_nodes), np.int64), np.zeros(requests.num_requests)
    keys = np.repeat(np.arange(requests.num_requests) % requests.num_layers, np.diff(requests.offsets))
    keys = keys * plan.model.num_experts + requests.experts
    book = np.empty((int(np.diff(first)[keys].sum()) if keep_pieces else 0, 4), np.int64)
    num_kept = _fill(
        requests.offsets, requests.experts, requests.token_counts, requests.num_layers, first, masks, sizes,
        np.ascontiguousarray(on_fast), np.ascontiguousarray(slowness, np.float64),
        np.zeros(on_fast.shape[1], np.int64), np.empty(most, np.int64), np.empty(most, np.int64),
        np.empty((most, 2), np.int64), np.empty(most, np.int32), np.empty(num_nodes),
        np.empty(scratch_length(most, num_nodes), np.int64), out,
        excess, book,
    )  # fmt: skip
    request, node, piece, tokens = book[:num_kept].T
    pieces = ServedPieces(request, node, parts[piece], tokens)
    return out.reshape(-1, requests.num_layers, num_nodes), excess.reshape(-1, requests.num_layers), pieces


def _pieces(plan: Plan, hidden_size: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(first piece of each (layer, expert) int64 [L E + 1], nodes of each piece as bits, its bytes, its part)."""
    columns = plan.placements.arrays()
    nodes = [tier for tier in plan.tiers if tier.startswith("node")]
    number = np.array([nodes.index(tier) if tier in nodes else -1 for tier in plan.tiers])[columns["tier"]]
    here = number >= 0
    key = (columns["layer"] * plan.model.num_experts + columns["expert"])[here]
    rows = np.stack([key, columns["start"][here], columns["stop"][here]], axis=1)
    pieces, inverse, _ = unique_rows(rows)
    masks = np.zeros(len(pieces), np.int64)
    np.bitwise_or.at(masks, inverse, np.int64(1) << number[here])
    layer = pieces[:, 0] // plan.model.num_experts
    sizes = planned_bytes(plan, nodes[0], layer, pieces[:, 1], pieces[:, 2], hidden_size)
    num_keys = plan.model.num_layers * plan.model.num_experts
    parts = (pieces[:, 2] - pieces[:, 1]) / plan.num_units
    return np.searchsorted(pieces[:, 0], np.arange(num_keys + 1)).astype(np.int64), masks, sizes, parts


def _compiled(function: Callable) -> Any:
    """Machine code on disk must not outlive the sources of ``dispatch`` either."""
    function.__qualname__ += f"_{stamp_of_room('dispatch')}"
    options: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
    return njit(**options)(stamped(function))


@_compiled
def _fill(
    offsets, experts, token_counts, num_layers, first, masks, sizes, on_fast, slowness, used, jobs, job_bytes,
    piece_of_job, tier_of, loads, scratch, out, excess, book,
):  # fmt: skip
    num_experts, num_kept = on_fast.shape[1], 0
    for request in range(len(offsets) - 1):
        layer, num_jobs = request % num_layers, 0
        for place in range(offsets[request], offsets[request + 1]):
            used[experts[place]] = token_counts[place]
        for expert in range(num_experts):  # rising, as the kernels go through them: ties depend on it
            num_tokens = used[expert]
            if not num_tokens:
                continue
            used[expert] = 0
            if on_fast[layer, expert]:
                continue
            key = layer * num_experts + expert
            for piece in range(first[key], first[key + 1]):
                if sizes[piece] > 0:
                    jobs[num_jobs], job_bytes[num_jobs] = masks[piece], sizes[piece]
                    piece_of_job[num_jobs, 0], piece_of_job[num_jobs, 1] = piece, num_tokens
                    num_jobs += 1
        if num_jobs == 0:
            continue
        answer = dispatch(jobs[:num_jobs], job_bytes[:num_jobs], slowness, tier_of[:num_jobs], loads, scratch)
        if answer == BOUNDED:
            slowest = 0.0
            for load in loads:
                slowest = max(slowest, load)
            excess[request] = slowest / lower_bound(jobs[:num_jobs], job_bytes[:num_jobs], slowness) - 1
        for job in range(num_jobs):
            out[request, tier_of[job]] += job_bytes[job]
            if len(book):
                book[num_kept, 0], book[num_kept, 1] = request, tier_of[job]
                book[num_kept, 2], book[num_kept, 3] = piece_of_job[job, 0], piece_of_job[job, 1]
                num_kept += 1
    return num_kept
