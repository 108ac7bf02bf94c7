"""Reader of vLLM's returned routed experts: one ``.npy`` for each request, [seq_len - 1, layers, K].

Knows the array that vLLM attaches to a finished request (``outputs[i].routed_experts``, uint8 or
uint16, logical ids, all hidden layers, dense layers as rows of zeros) saved by ``numpy.save``.
Does not know gate weights (vLLM returns none) or which tokens were the prompt, unless told.
Floor 1. Source: vLLM 0.33 ``--enable-return-routed-experts``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moelab.domain.trace import NO_EXPERT, Phase, TokenTable, Trace, TraceHeader


def matches(path: Path) -> bool:
    """True for a ``.npy`` file."""
    return path.suffix == ".npy" and path.is_file()


def read(path: Path, *, num_experts: int | None = None, num_prompt_tokens: int = 0, model: str = "unknown") -> Trace:
    """Trace of one request.

    ``num_experts`` is E (the file does not say; without it the largest id that occurs + 1 is taken,
    and the header's provenance says so).
    The first ``num_prompt_tokens`` rows are one prefill step, the others decode steps. Raises
    ``ValueError`` where the array is not [tokens, layers, K] of integers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npy file ({error}): save it with numpy.save") from None
    if array.ndim != 3 or array.dtype.kind not in "ui" or 0 in array.shape:
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}, expected integers [tokens, layers, K] as vLLM returns them"
        )
    if int(array.max()) >= NO_EXPERT or int(array.min()) < 0:
        raise ValueError(
            f"{path} holds ids of {array.min()} to {array.max()}, expected experts of 0 to {NO_EXPERT - 1}"
        )
    # A dense layer comes out as zeros; a routed row never repeats an expert.
    routed = ~(array == 0).all(axis=(0, 2)) if array.shape[2] > 1 else np.ones(array.shape[1], bool)
    model_layers = np.flatnonzero(routed)
    if not len(model_layers):
        raise ValueError(f"{path} routes nowhere: every layer is all zeros, expected at least one MoE layer")
    experts = np.ascontiguousarray(array[:, routed, :]).astype(np.uint16)
    num_tokens, num_layers, top_k = experts.shape
    highest = int(experts.max())
    if num_experts is not None and highest >= num_experts:
        raise ValueError(f"{path} holds expert {highest}, expected ids below num_experts = {num_experts}")
    prompt = min(num_prompt_tokens, num_tokens)
    row = np.arange(num_tokens)
    said = [f"file {path.name}"]
    if num_experts is None:
        said.append("E taken as the largest id + 1")
    said.append(
        f"the first {prompt} tokens taken as the prompt, as told"
        if num_prompt_tokens
        else "prompt length not told: every token taken as decode"
    )
    header = TraceHeader(
        model=model, model_type="unknown", num_layers=num_layers, num_experts=num_experts or highest + 1, top_k=top_k,
        model_layer_of_layer=tuple(model_layers.tolist()), expert_bytes=(0,) * num_layers, gate_weight_kind="unknown",
        slot_order="unknown", engine="vLLM", quantization="unknown", licence="unknown", provenance="; ".join(said),
        synthetic=False,
    )  # fmt: skip
    tokens = TokenTable.build(
        step=np.where(row < prompt, 0, row - prompt + (prompt > 0)), request=0, position=row,
        phase=np.where(row < prompt, Phase.PREFILL, Phase.DECODE),
    )  # fmt: skip
    return Trace(header, experts, np.zeros(experts.shape, np.float16), tokens)
