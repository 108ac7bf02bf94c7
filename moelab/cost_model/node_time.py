"""node_time: time of layer-steps whose experts are read by several NUMA nodes at once, the slowest deciding.  Floor 1.

    layer-step = layer_s + token_s x tokens + time until the last node is done

A node alone takes ``expert_s`` (by tokens) for each whole expert, and the same part of it, times ``piece_factor``, for
a piece. That time holds computing and reading, which overlap: the larger decides, near each other both count,

    kernel alone = (computing^p + read alone^p)^(1/p),  p = ``sharpness``

so a read loop's time alone tells how much of it is computing. While j nodes work each has the j-th part of what memory
gives to j readers, and the same computing with that read takes

    (computing^p + read of j^p)^(1/p) / kernel_share

which is the kernel's time alone where memory has enough for all, and the time of the read where it has not. (Kernel
alone in the place of computing would count reading twice.) Nodes that differ have times and read rates of their own
(``ExpertTimes.nodes``), and others take the same part of each one's rate. When a node is done the others go on faster:
a fluid. Nodes that share nothing have a read rate of j nodes that does not fall with j. Everything is measured
(``ExpertTimes``); a read rate of the same run may replace the calibrated one, as this house allows. Does not know
dispatch, plans or attention, nor meetings of the nodes inside a layer-step: whoever has most gate_proj has most
down_proj.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moelab.domain.expert_times import ExpertTimes
from moelab.domain.units import GB


def whole_expert_s(times: ExpertTimes, num_tokens: Any) -> np.ndarray:
    """Seconds of a whole expert on one node alone; straight lines between measured numbers of tokens, and beyond."""
    known = np.array(sorted(times.expert_s), np.float64)
    seconds = np.array([times.expert_s[int(n)] for n in known])
    tokens = np.asarray(num_tokens, np.float64)
    inside = np.interp(tokens, known, seconds)
    if len(known) < 2:
        return inside * np.maximum(1.0, tokens / known[-1])
    slope = (seconds[-1] - seconds[-2]) / (known[-1] - known[-2])
    return inside + np.maximum(0.0, tokens - known[-1]) * max(0.0, slope)


def piece_factor(times: ExpertTimes, part: Any) -> np.ndarray:
    """Time of a piece over the same part of the whole; 1 where nothing was measured."""
    if not times.piece_factor:
        return np.ones(np.shape(part))
    known = np.array(sorted({1, *times.piece_factor}), np.float64)
    factors = np.array([times.piece_factor.get(int(m), 1.0) for m in known])
    return np.interp(np.log(1 / np.asarray(part, np.float64)), np.log(known), factors)


def node_factor(times: ExpertTimes, node: Any, num_tokens: Any) -> np.ndarray:
    """Time of a whole expert on ``node`` over that on the first; 1 where the nodes are alike."""
    node, tokens = np.broadcast_arrays(np.asarray(node, np.int64), np.asarray(num_tokens, np.float64))
    out = np.ones(node.shape)
    for number, each in enumerate(times.nodes):
        known = sorted(each.factor)
        here = node == number
        out[here] = np.interp(tokens[here], known, [each.factor[n] for n in known])
    return out


def entry_s(
    times: ExpertTimes,
    part: Any,
    num_tokens: Any,
    *,
    busy: int = 1,
    read_gb_per_s: float | None = None,
    node: Any = 0,
) -> np.ndarray:
    """Seconds of pieces (``part`` of an expert, 1 for a whole) on ``node`` while ``busy`` nodes work.

    ``read_gb_per_s``: of the first node by a read loop then, instead of the calibrated one (others in proportion); that
    of a node alone may be higher than calibrated, too. Beyond the numbers of nodes that were measured the largest
    holds.
    """
    part = np.asarray(part, np.float64)
    alone = part * whole_expert_s(times, num_tokens) * piece_factor(times, part)
    num_bytes = part * times.expert_bytes
    if times.nodes:  # a node of twice the rate has its bytes as if they were half as many
        alone = alone * node_factor(times, node, num_tokens)
        num_bytes = num_bytes / read_shares(times)[np.asarray(node, np.int64)]
    read_alone = num_bytes / (times.read_gb_per_s * GB)
    if busy == 1 or not times.busy:
        if read_gb_per_s is None or busy > 1:
            return alone
        return with_reads(alone, read_alone, num_bytes / (read_gb_per_s * GB), times.sharpness)
    known = times.busy[min(busy, max(times.busy))]
    read = num_bytes / ((read_gb_per_s or known.read_gb_per_s) * GB)
    return with_slower_reads(alone, read_alone, read, times.sharpness) / known.kernel_share


def read_shares(times: ExpertTimes) -> np.ndarray:
    """float64 [N] of unequal nodes: their read rates over that of the first."""
    rates = np.array([each.read_gb_per_s for each in times.nodes])
    return rates / rates[0]


def with_slower_reads(kernel_s: Any, read_alone_s: Any, read_s: Any, sharpness: float) -> np.ndarray:
    """``with_reads``, never less than alone: others do not make memory faster."""
    return with_reads(kernel_s, read_alone_s, np.maximum(read_alone_s, read_s), sharpness)


def with_reads(kernel_s: Any, read_alone_s: Any, read_s: Any, sharpness: float) -> np.ndarray:
    """What a kernel of ``kernel_s`` takes when its bytes, which a read loop alone had in ``read_alone_s``, need
    ``read_s``: its computing stays, its read changes.

    A kernel that is faster alone than the read loop (caches) reads by as much faster than it then, too.
    """
    kernel, alone, read = (np.asarray(each, np.float64) for each in (kernel_s, read_alone_s, read_s))
    own = np.minimum(kernel, alone)
    most = np.maximum(kernel, 1e-30)
    computing = kernel * np.maximum(0.0, 1 - (own / most) ** sharpness) ** (1 / sharpness)
    return slower_of(computing, own * read / np.maximum(alone, 1e-30), sharpness)


def slower_of(kernel_s: Any, read_s: Any, sharpness: float) -> np.ndarray:
    """Between the two the slower decides, near each other both count: their norm of order ``sharpness``."""
    kernel, read = np.asarray(kernel_s, np.float64), np.asarray(read_s, np.float64)
    most = np.maximum(np.maximum(kernel, read), 1e-30)
    return most * ((kernel / most) ** sharpness + (read / most) ** sharpness) ** (1 / sharpness)


def layer_steps_s(
    times: ExpertTimes,
    *,
    step: np.ndarray,
    node: np.ndarray,
    part: np.ndarray,
    num_tokens: np.ndarray,
    tokens_of_step: np.ndarray,
    num_nodes: int,
    read_gb_per_s: Mapping[int, float] | None = None,
    in_turn: bool = False,
) -> np.ndarray:
    """Seconds of S layer-steps, float64 [S].

    Entries [M]: in layer-step ``step`` node ``node`` computes ``part`` of an expert for ``num_tokens`` tokens.
    ``tokens_of_step`` [S]. ``read_gb_per_s``: mean rate of the nodes by number of busy ones, of the run that is
    predicted. ``in_turn``: nodes that run one after the other and are composed (the slowest alone). Raises
    ``ValueError`` for arrays of different lengths or a node that does not exist, or has no times of its own.
    """
    if not len(step) == len(node) == len(part) == len(num_tokens):
        raise ValueError(f"entries are {len(step)}, {len(node)}, {len(part)}, {len(num_tokens)}, expected one length")
    if len(node) and not 0 <= int(np.min(node)) <= int(np.max(node)) < num_nodes:
        raise ValueError(f"nodes are {np.min(node)} to {np.max(node)}, expected 0 to {num_nodes - 1}")
    if times.nodes and num_nodes > len(times.nodes):
        raise ValueError(f"nodes are {num_nodes}, expected at most the {len(times.nodes)} whose times {times.name} has")
    mean_share = read_shares(times)[:num_nodes].mean() if times.nodes else 1.0
    num_steps, tokens_of_step = len(tokens_of_step), np.asarray(tokens_of_step)
    cell = np.asarray(step, np.int64) * num_nodes + node
    work = np.empty((num_nodes, num_steps, num_nodes))  # [busy - 1, S, N]
    for busy in range(1, num_nodes + 1):
        mean_rate = (read_gb_per_s or {}).get(busy)
        rate = None if mean_rate is None else mean_rate / mean_share
        seconds = entry_s(times, part, num_tokens, busy=1 if in_turn else busy, read_gb_per_s=rate, node=node)
        work[busy - 1] = np.bincount(cell, seconds, num_steps * num_nodes).reshape(num_steps, num_nodes)
    return times.layer_s + times.token_s * tokens_of_step + (work[0].max(axis=1) if in_turn else fluid(work))


def read_layer_steps_s(
    read_bytes: np.ndarray, *, read_gb_per_s: Sequence[float], shares: Sequence[float]
) -> np.ndarray:
    """Seconds of S layer-steps, float64 [S], of bytes alone: ``read_bytes`` [S, N] at the nodes' own rates [N], of
    which each reaches ``shares`` [N] while 1, 2, .. N of them read.

    Raises ``ValueError`` for rates or shares of other nodes.
    """
    num_nodes = read_bytes.shape[1]
    if not len(read_gb_per_s) == len(shares) == num_nodes or min(*read_gb_per_s, *shares) <= 0:
        raise ValueError(
            f"rates are {list(read_gb_per_s)}, shares {list(shares)}, expected {num_nodes} positive numbers each"
        )
    alone = read_bytes / (np.asarray(read_gb_per_s, np.float64) * GB)
    return fluid(alone / np.asarray(shares, np.float64)[:, None, None])


def by_read_rates(share: float, num_nodes: int) -> str:
    """What a prediction without calibrated times says of itself."""
    return f"read rates, {share:.2f} of each while all {num_nodes} nodes read"


def fluid(work: np.ndarray) -> np.ndarray:
    """Seconds until all are done, [S]; ``work`` [busy - 1, S, N]: what each takes if so many are busy throughout."""
    num_nodes, num_steps, _ = work.shape
    left = (work[0] > 0).astype(np.float64)
    spent, rows = np.zeros(num_steps), np.arange(num_steps)
    for _ in range(num_nodes):
        busy = (left > 0).sum(axis=1)
        at = work[np.maximum(busy, 1) - 1, rows]  # [S, N]
        need = np.where(left > 0, left * at, np.inf)
        first = np.where(busy > 0, need.min(axis=1), 0.0)
        spent += first
        done = np.divide(first[:, None], at, out=np.zeros_like(at), where=at > 0)
        left = np.where(need <= first[:, None] * (1 + 1e-12), 0.0, np.maximum(0.0, left - done))
    return spent
