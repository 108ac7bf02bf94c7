"""token_routes: which experts one token used, and one value for each token of a request, to colour its text.  Floor 2.

What ``moelab.widgets.TraceBrowser`` shows, as plain calls. Rows of a request stand in the order in which they ran. Does
not know texts or colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from moelab.domain.trace import NO_EXPERT, Phase, Trace

if TYPE_CHECKING:
    import pandas as pd

By = Literal["expert", "gate weight", "reuse", "step", "one expert"]
WAYS: tuple[By, ...] = get_args(By)
MOST_NAMED = 6
"""Experts of a request that have a colour of their own; the others are unknown (NaN)."""


@dataclass(frozen=True)
class TokenValues:
    """``values`` float32 [T], NaN where there is none; ``names`` where they are indices of categories, else empty."""

    values: np.ndarray
    label: str
    names: tuple[str, ...] = ()


def request_table(trace: Trace) -> pd.DataFrame:
    """One row for each request, in the order in which they begin: tokens, of the prompt, domain, steps."""
    import pandas as pd

    tokens = trace.tokens
    numbers, first, index = np.unique(tokens.request, return_index=True, return_inverse=True)
    count = np.bincount(index, minlength=len(numbers))
    prompt = np.bincount(index, weights=tokens.phase == Phase.PREFILL, minlength=len(numbers)).astype(int)
    names = (*trace.header.domains, "none")
    frame = pd.DataFrame(
        {
            "request": numbers, "domain": [names[d] if d >= 0 else "none" for d in tokens.domain[first]],
            "tokens": count, "prompt_tokens": prompt, "first_step": tokens.step[first],
        }
    )  # fmt: skip
    return frame.iloc[np.argsort(first, kind="stable")].reset_index(drop=True)


def token_values(
    trace: Trace, request: int, by: By = "expert", *, layer: int = 0, slot: int = 0, expert: int = 0
) -> TokenValues:
    """A value for each token of ``request``, of its routing in MoE layer ``layer``.

    ``expert``: which expert stands in ``slot`` (0: the first), an index of the ``MOST_NAMED`` most used ones;
    ``gate weight``: of that slot; ``reuse``: part of its experts that the token before in the request used too;
    ``step``: of the forward pass, from the request's first on; ``one expert``: 0, the index of "used", where
    ``expert`` is among the token's.
    ValueError for an unknown way, request, layer, slot or expert.
    """
    header = trace.header
    for name, value, end in (
        ("layer", layer, header.num_layers), ("slot", slot, header.top_k), ("expert", expert, header.num_experts),
    ):  # fmt: skip
        if not 0 <= value < end:
            raise ValueError(f"{name} is {value}, expected 0 to {end - 1}")
    rows = rows_of_request(trace, request)
    ids = trace.experts[rows, layer]
    place = f"layer {header.model_layer_of_layer[layer]}"
    if by == "expert":
        chosen = ids[:, slot]
        used = np.bincount(chosen[chosen != NO_EXPERT], minlength=header.num_experts)
        named = [int(e) for e in np.argsort(-used, kind="stable")[:MOST_NAMED] if used[e]]
        values = np.full(len(rows), np.nan, np.float32)
        for index, each in enumerate(named):
            values[chosen == each] = index
        return TokenValues(values, f"expert in slot {slot}, {place}", tuple(f"expert {each}" for each in named))
    if by == "gate weight":
        weights = trace.gate_weights[rows, layer, slot].astype(np.float32)
        return TokenValues(np.where(ids[:, slot] == NO_EXPERT, np.nan, weights), f"gate weight of slot {slot}, {place}")
    if by == "reuse":
        values = np.full(len(rows), np.nan, np.float32)
        same = (ids[1:, :, None] == ids[:-1, None, :]) & (ids[1:, :, None] != NO_EXPERT)
        routed = (ids[1:] != NO_EXPERT).sum(1)
        values[1:] = np.where(routed, same.any(2).sum(1) / np.maximum(routed, 1), np.nan)
        return TokenValues(values, f"part of the experts that the token before used, {place}")
    if by == "step":
        steps = trace.tokens.step[rows]
        return TokenValues((steps - steps[0]).astype(np.float32), "step, from the request's first on")
    if by == "one expert":
        uses = np.where((ids == expert).any(1), np.float32(0), np.float32(np.nan))
        return TokenValues(uses, f"expert {expert}, {place}", ("used",))
    raise ValueError(f"by is {by!r}, expected one of {', '.join(WAYS)}")


def token_routes(trace: Trace, request: int, token: int) -> pd.DataFrame:
    """Routing of token ``token`` (0: the request's first): one row for each routed slot of each layer."""
    import pandas as pd

    rows = rows_of_request(trace, request)
    if not 0 <= token < len(rows):
        raise ValueError(f"token is {token}, expected 0 to {len(rows) - 1}, the tokens of request {request}")
    ids, weights = trace.experts[rows[token]], trace.gate_weights[rows[token]].astype(np.float32)
    layer, slot = np.nonzero(ids != NO_EXPERT)
    return pd.DataFrame(
        {
            "layer": np.array(trace.header.model_layer_of_layer)[layer], "slot": slot,
            "expert": ids[layer, slot].astype(int), "gate_weight": weights[layer, slot],
        }
    )  # fmt: skip


def rows_of_request(trace: Trace, request: int) -> np.ndarray:
    """Row numbers of a request; ValueError where it has none."""
    rows = np.flatnonzero(trace.tokens.request == request)
    if not len(rows):
        there = np.unique(trace.tokens.request)
        raise ValueError(f"request is {request}, expected one of the {len(there)} from {there[0]} to {there[-1]}")
    return rows
