"""A trace of plain arrays: what somebody recorded elsewhere, with as much as they know about it.

Fills in what follows from what is given and refuses what contradicts itself. What nobody said stays unknown in the
header: it is not guessed. Knows no files. Floor 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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

    `request` [T]: which request a token belongs to, one for all without it. `position` [T] follows from it.
    `num_prompt_tokens`: how many tokens of each request, or of all alike, are its prompt: phase prefill; the others
    decode. `step` [T]: the forward pass of a token, never decreasing; without it requests ran one after the other:
    a prompt is one step, each other token one. Batches that ran together need `step`.
    `domain` [T]: names or ``None``. `expert_bytes`: of one expert, for all layers or each.
    ValueError where shapes, ids, steps or positions contradict each other.
    """
    ids = np.asarray(experts)
    if ids.ndim == 2:
        ids = ids[:, None, :]
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or 0 in ids.shape[1:]:
        raise ValueError(f"experts is {ids.dtype} {ids.shape}, expected integers [T, L, K] (tokens, MoE layers, top-k)")
    routed = (ids >= 0) & (ids != NO_EXPERT)
    highest = int(ids[routed].max()) if routed.any() else -1
    said = provenance
    if num_experts is None:
        num_experts, said = max(highest + 1, ids.shape[2], 1), f"{provenance}; E taken as the largest id + 1"
    if (ids < -1).any() or highest >= num_experts:
        raise ValueError(
            f"experts holds ids from {int(ids.min())} to {highest}, expected -1 to {num_experts - 1}: "
            "give num_experts = E, and -1 where a slot was not routed"
        )
    sorted_ids = np.sort(np.where(routed, ids, -1), axis=2)
    if ((sorted_ids[:, :, 1:] == sorted_ids[:, :, :-1]) & (sorted_ids[:, :, 1:] >= 0)).any():
        raise ValueError("experts names an expert twice for one token and layer, expected K different ones")
    weights = np.zeros(ids.shape, np.float16)
    if gate_weights is not None:
        given = np.asarray(gate_weights, np.float32)
        if given.size != ids.size:
            raise ValueError(f"gate_weights is {given.shape}, expected {ids.shape} like experts")
        weights = np.where(routed, given.reshape(ids.shape), 0).astype(np.float16)
    names, domain_of_token = _domains(domain, len(ids))
    tokens = _token_table(len(ids), request, position, step, num_prompt_tokens, domain_of_token, token_id)
    num_layers = ids.shape[1]
    header = TraceHeader(
        model=model,
        model_type=model_type,
        num_layers=num_layers,
        num_experts=num_experts,
        top_k=ids.shape[2],
        model_layer_of_layer=tuple(range(num_layers)) if model_layer_of_layer is None else tuple(model_layer_of_layer),
        expert_bytes=tuple(int(each) for each in np.broadcast_to(expert_bytes, num_layers)),
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


def _domains(domain: Any, num_tokens: int) -> tuple[tuple[str, ...], np.ndarray]:
    """(names, index of each token) of a name for each token."""
    given = [domain] * num_tokens if domain is None or isinstance(domain, str) else list(domain)
    _check_length("domain", given, num_tokens)
    names = tuple(dict.fromkeys(str(name) for name in given if name is not None))
    index = {name: i for i, name in enumerate(names)}
    return names, np.array([-1 if name is None else index[str(name)] for name in given], np.int16)


def _token_table(
    num_tokens: int, request: Any, position: Any, step: Any, num_prompt_tokens: Any, domain: Any, token_id: Any
) -> TokenTable:
    requests = np.zeros(num_tokens, np.int64) if request is None else np.asarray(request)
    _check_length("request", requests, num_tokens)
    _, index, lengths = np.unique(requests, return_inverse=True, return_counts=True)
    if position is None:
        order = np.argsort(index, kind="stable")
        starts = np.concatenate([[0], lengths.cumsum()[:-1]]).astype(np.int64)
        position = np.empty(num_tokens, np.int64)
        position[order] = np.arange(num_tokens) - np.repeat(starts, lengths)
    position = np.asarray(position)
    _check_length("position", position, num_tokens)
    prompt = np.asarray(0 if num_prompt_tokens is None else num_prompt_tokens)
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
    _check_length("step", step, num_tokens)
    return TokenTable.build(
        step=step,
        request=requests,
        position=position,
        phase=np.where(is_prompt, Phase.PREFILL, Phase.DECODE),
        domain=domain,
        token_id=token_id,
    )


def _check_length(name: str, values: Any, num_tokens: int) -> None:
    if len(values) != num_tokens:
        raise ValueError(f"{name} has {len(values)} entries, expected one for each of the {num_tokens} tokens")
