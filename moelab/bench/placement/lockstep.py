"""Lockstep: steps of several requests together, made of their recorded tokens.  Floor 6.

A step has the next token of each of B requests, so unions are of real routing, and prefill tokens become steps of their
own (``token`` steps, labelled so by the caller). Single tokens are drawn from all requests. Does not know plans.
"""

from __future__ import annotations

import numpy as np

from moelab.domain.trace import Phase, TokenTable, Trace


def lockstep(trace: Trace, batch: int, num_steps: int, *, seed: int = 0) -> Trace:
    """``num_steps`` steps of ``batch`` tokens of different requests; a request that ends is followed by another.

    Requests are drawn with ``seed``; where there are fewer than ``batch``, one may be in a step several times, at
    different places. Raises ``ValueError`` without tokens.
    """
    if not trace.num_tokens or batch < 1 or num_steps < 1:
        raise ValueError(f"got {trace.num_tokens} tokens, batch {batch}, {num_steps} steps, expected 1 or more of each")
    rng = np.random.default_rng(seed)
    request = trace.tokens.request
    rows_of = [np.flatnonzero(request == each) for each in np.unique(request)]
    lanes = np.empty((num_steps, batch), np.int64)
    drawn: list[int] = []
    for lane in range(batch):
        filled = 0
        while filled < num_steps:
            if not drawn:
                drawn = rng.permutation(len(rows_of)).tolist()
            rows = rows_of[drawn.pop()]
            rows = rows[int(rng.integers(len(rows))) :] if filled == 0 else rows
            part = rows[: num_steps - filled]
            lanes[filled : filled + len(part), lane] = part
            filled += len(part)
    rows = lanes.ravel()
    tokens = TokenTable.build(
        step=np.repeat(np.arange(num_steps), batch), request=np.tile(np.arange(batch), num_steps),
        position=np.repeat(np.arange(num_steps), batch), phase=int(Phase.DECODE),
    )  # fmt: skip
    return Trace(trace.header, trace.experts[rows], trace.gate_weights[rows], tokens)


def single_tokens(trace: Trace, num_steps: int, *, seed: int = 0) -> Trace:
    """``num_steps`` steps of one token each, drawn from all requests; all tokens where there are fewer.

    Neighbours of a request route alike, so a lane of it would be one request's steps. Raises ``ValueError`` without
    tokens.
    """
    if not trace.num_tokens or num_steps < 1:
        raise ValueError(f"got {trace.num_tokens} tokens, {num_steps} steps, expected 1 or more of each")
    rows = np.random.default_rng(seed).permutation(trace.num_tokens)[:num_steps]
    tokens = TokenTable.build(
        step=np.arange(len(rows)), request=trace.tokens.request[rows], position=trace.tokens.position[rows],
        phase=trace.tokens.phase[rows],
    )  # fmt: skip
    return Trace(trace.header, trace.experts[rows], trace.gate_weights[rows], tokens)


def ids_of_steps(steps: Trace, num_layers: int) -> list[np.ndarray]:
    """Expert ids of each step, [B, L, K], of the first layers."""
    bounds = np.flatnonzero(np.diff(steps.tokens.step)) + 1
    return np.split(np.ascontiguousarray(steps.experts[:, :num_layers]), bounds)
