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
from moelab.domain.trace import NO_EXPERT, GateWeightKind, Phase, SlotOrder, TokenTable, Trace, TraceHeader


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
    ValueError where shapes, ids, steps or positions contradict each other; a warning where there are more layers than
    tokens and nothing else says which axis is which.
    """
    ids = given_array("experts", experts)
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
        weights = _gate_weights(gate_weights, shape, routed)
    names, domain_of_token = _domains(domain, len(ids))
    tokens = _token_table(len(ids), request, position, step, num_prompt_tokens, domain_of_token, token_id)
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


def _gate_weights(given: Any, shape: tuple[int, ...], routed: np.ndarray) -> np.ndarray:
    """float16 [T, L, K], 0 where a slot was not routed."""
    array = given_array("gate_weights", given)
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
    return weights


def _domains(domain: Any, num_tokens: int) -> tuple[tuple[str, ...], np.ndarray]:
    """(names, index of each token) of a name for each token."""
    given = [domain] * num_tokens if domain is None or isinstance(domain, str) else _list("domain", domain)
    _check_length("domain", given, num_tokens)
    given = [None if name is None or name != name else str(name) for name in given]  # NaN: pandas' nothing
    names = tuple(dict.fromkeys(name for name in given if name is not None))
    index = {name: i for i, name in enumerate(names)} | {None: -1}
    return names, np.array([index[name] for name in given], np.int16)


def _list(name: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}, expected one name for all tokens or one for each") from None


def _numbers_of_requests(request: Any, num_tokens: int) -> np.ndarray:
    """int64 [T]; names, and numbers that int32 does not hold, are numbered in the order in which they occur."""
    given = given_array("request", request)
    if given.dtype.kind not in "iuUSO" or given.ndim != 1:
        raise ValueError(f"request is {given.dtype} {given.shape}, expected a number or a name for each token")
    _check_length("request", given, num_tokens)
    if given.dtype.kind in "iu" and (not len(given) or (given.min() >= 0 and given.max() < 2**31)):
        return given.astype(np.int64)
    number: dict[Any, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in given.tolist()], np.int64)


def _token_table(
    num_tokens: int, request: Any, position: Any, step: Any, num_prompt_tokens: Any, domain: Any, token_id: Any
) -> TokenTable:
    requests = np.zeros(num_tokens, np.int64) if request is None else _numbers_of_requests(request, num_tokens)
    _, index, lengths = np.unique(requests, return_inverse=True, return_counts=True)
    if position is None:
        order = np.argsort(index, kind="stable")
        starts = np.concatenate([[0], lengths.cumsum()[:-1]]).astype(np.int64)
        position = np.empty(num_tokens, np.int64)
        position[order] = np.arange(num_tokens) - np.repeat(starts, lengths)
    position = given_integers("position", position, low=0)
    _check_length("position", position, num_tokens)
    prompt = given_integers("num_prompt_tokens", 0 if num_prompt_tokens is None else num_prompt_tokens, low=0)
    if prompt.ndim > 1 or prompt.size not in (1, len(lengths)):
        raise ValueError(
            f"num_prompt_tokens has {prompt.size} entries, expected one for all or one for each of the {len(lengths)} "
            "requests, in rising order of their numbers"
        )
    is_prompt = position < np.broadcast_to(prompt.reshape(-1), len(lengths))[index]
    if step is None:
        changes = np.flatnonzero(np.diff(index)) + 1
        if len(changes) + 1 > len(lengths) and num_tokens:
            raise ValueError(
                "request comes back after another one, so requests ran together: give step, the forward pass of each "
                "token, or sort the rows by request"
            )
        same = np.zeros(num_tokens, bool)
        same[1:] = (index[1:] == index[:-1]) & is_prompt[1:] & is_prompt[:-1]
        step = np.cumsum(~same) - 1
    step = given_integers("step", step, low=0, high=2**63 - 1)
    _check_length("step", step, num_tokens)
    if token_id is not None:
        token_id = given_integers("token_id", token_id)
        _check_length("token_id", token_id, num_tokens)
    return TokenTable.build(
        step=step,
        request=requests,
        position=position,
        phase=np.where(is_prompt, Phase.PREFILL, Phase.DECODE),
        domain=domain,
        token_id=token_id,
    )


def _check_length(name: str, values: Any, num_tokens: int) -> None:
    if np.ndim(values) != 1 or len(values) != num_tokens:
        raise ValueError(f"{name} has {np.size(values)} entries, expected one for each of the {num_tokens} tokens")
