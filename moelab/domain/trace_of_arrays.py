"""A trace of plain arrays: what somebody recorded elsewhere, with as much as they know about it.

Fills in what follows from what is given and refuses what contradicts itself. What nobody said stays unknown in the
header: it is not guessed. Knows no files. Floor 0.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import numpy as np
from pydantic import ValidationError

from moelab.domain.array_axes import check_axes, check_different
from moelab.domain.given_array import given_array, given_integers
from moelab.domain.given_tokens import domains_of_tokens, numbers_of_requests, token_table
from moelab.domain.trace import NO_EXPERT, GateWeightKind, SlotOrder, Trace, TraceHeader


def trace_of_arrays(
    experts: Any,
    gate_weights: Any = None,
    *,
    num_experts: int | None = None,
    request: Any = None,
    position: Any = None,
    step: Any = None,
    num_prompt_tokens: Any = None,
    domain: Any = None,
    token_id: Any = None,
    model: str = "unknown",
    model_type: str = "unknown",
    model_layer_of_layer: Any = None,
    expert_bytes: Any = 0,
    hidden_size: int | None = None,
    moe_intermediate_size: int | None = None,
    gate_weight_kind: GateWeightKind = "unknown",
    slot_order: SlotOrder = "unknown",
    engine: str = "unknown",
    quantization: str = "unknown",
    licence: str = "not stated",
    provenance: str = "arrays",
    synthetic: bool = False,
) -> Trace:
    """`experts`: integers [T, L, K], or [T, K] of one layer; -1 or ``NO_EXPERT`` where a slot was not routed.

    ``Trace.from_arrays(experts, gate_weights, ...)`` is this function. Rows are tokens in the order in which they were
    run. `gate_weights` [T, L, K], of the kind `gate_weight_kind`; without them they are 0, which policies by score
    cannot use. `num_experts` is E; without it the largest id that occurs + 1, and provenance says so.

    `request` [T]: which request a token belongs to, a number or a name (names are numbered as they occur), one for all
    without it. `position` [T] follows from it. `num_prompt_tokens`: how many tokens of each request, or of all alike,
    are its prompt: phase prefill; the others decode. `step` [T]: the forward pass of a token, never decreasing; without
    it requests ran one after the other: a prompt is one step, each other token one. Batches that ran together need
    `step`. `domain` [T]: names or ``None``. `expert_bytes`: of one expert, for all layers or each; 0: unknown.
    `hidden_size` and `moe_intermediate_size` of the model: without them no planner can cut experts into pieces.
    ValueError where shapes, ids, steps or positions contradict each other; a warning where there are more layers than
    tokens and nothing else says which axis is which.
    """
    ids = given_array("experts", experts, masked=NO_EXPERT)
    shape = ids.shape
    if ids.ndim == 2:
        ids = ids[:, None, :]
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or 0 in ids.shape[1:]:
        raise ValueError(f"experts is {ids.dtype} {shape}, expected integers [T, L, K] (tokens, MoE layers, top-k)")
    check_axes(ids, {"request": request, "position": position, "step": step, "domain": domain, "token_id": token_id})
    routed = (ids >= 0) & (ids != NO_EXPERT)
    highest = int(ids[routed].max()) if routed.any() else -1
    said = provenance
    if num_experts is None:
        num_experts, said = max(highest + 1, ids.shape[2], 1), f"{provenance}; E taken as the largest id + 1"
    num_experts = _whole_number("num_experts", num_experts)
    if (ids < -1).any() or highest >= num_experts:
        raise ValueError(
            f"experts holds ids from {int(ids.min())} to {highest}, expected -1 to {num_experts - 1}: "
            "give num_experts = E, and -1 where a slot was not routed"
        )
    check_different(ids, routed, shape)
    weights = np.zeros(ids.shape, np.float16)
    if gate_weights is not None:
        weights = _gate_weights(gate_weights, shape, routed, gate_weight_kind)
    if request is not None:
        request, words = numbers_of_requests(request, len(ids))
        said += words
    names, domain_of_token = domains_of_tokens(domain, len(ids))
    tokens = token_table(len(ids), request, position, step, num_prompt_tokens, domain_of_token, token_id)
    num_layers = ids.shape[1]
    header = _header(
        model=model,
        model_type=model_type,
        num_layers=num_layers,
        num_experts=num_experts,
        top_k=ids.shape[2],
        model_layer_of_layer=tuple(range(num_layers))
        if model_layer_of_layer is None
        else tuple(given_integers("model_layer_of_layer", model_layer_of_layer, low=0).reshape(-1).tolist()),
        expert_bytes=_expert_bytes(expert_bytes, num_layers),
        hidden_size=hidden_size,
        moe_intermediate_size=moe_intermediate_size,
        gate_weight_kind=gate_weight_kind,
        slot_order=slot_order,
        engine=engine,
        quantization=quantization,
        licence=licence,
        provenance=said,
        synthetic=synthetic,
        domains=names,
    )
    return Trace(header, np.where(routed, ids, NO_EXPERT).astype(np.uint16), weights, tokens)


ARGUMENTS = tuple(inspect.signature(trace_of_arrays).parameters)
"""Names of everything that can be said of arrays."""


def _header(**fields: Any) -> TraceHeader:
    """The header; its errors in our words."""
    try:
        return TraceHeader(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise ValueError(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0])
        expected = first["msg"].removeprefix("Input should be ")
        raise ValueError(f"{name} is {fields[name]!r}, expected {expected}: leave {name} out or mend it") from None


def _whole_number(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}, expected a whole number") from None


def _expert_bytes(given: Any, num_layers: int) -> tuple[int, ...]:
    """Of each layer; 0 where nobody knows."""
    sizes = given_array("expert_bytes", 0 if given is None else given)
    if sizes.dtype.kind not in "iuf" or sizes.ndim > 1 or sizes.size not in (1, num_layers):
        raise ValueError(
            f"expert_bytes is {sizes.dtype} {sizes.shape}, expected one number or one for each of the {num_layers} "
            "layers"
        )
    if not (np.isfinite(sizes) & (sizes >= 0) & (sizes == np.floor(sizes))).all():
        raise ValueError(f"expert_bytes is {given!r}, expected whole numbers, 0 where a size is unknown")
    return tuple(int(each) for each in np.broadcast_to(sizes.reshape(-1), num_layers))


def _gate_weights(given: Any, shape: tuple[int, ...], routed: np.ndarray, kind: str) -> np.ndarray:
    """float16 [T, L, K], 0 where a slot was not routed."""
    array = given_array("gate_weights", given, masked=0)
    if array.shape != shape or array.dtype.kind not in "iuf":
        raise ValueError(
            f"gate_weights is {array.dtype} {array.shape}, expected numbers {shape} like experts, slot by slot: "
            "bring both into the order [T, L, K]"
        )
    with np.errstate(over="ignore"):
        weights = np.where(routed, array.reshape(routed.shape), 0).astype(np.float16)
    if not np.isfinite(weights).all():
        raise ValueError(
            f"gate_weights holds {int((~np.isfinite(weights)).sum()):,} numbers that are NaN or beyond "
            f"{np.finfo(np.float16).max:.0f}: give the weights that the experts' outputs were multiplied by"
        )
    if kind not in ("selection_score", "unknown") and (weights < 0).any():
        raise ValueError(f"gate_weights holds {weights.min()}, expected none below 0 for the kind {kind}")
    return weights
