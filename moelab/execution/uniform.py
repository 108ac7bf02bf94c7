"""Seeded uniform routing at the shape of a model preset: the worst case of every cache, always synthetic. Floor 4."""

from __future__ import annotations

import numpy as np

from moelab.domain.model import ModelSpec
from moelab.domain.trace import Phase, TokenTable, Trace, TraceHeader


def uniform_trace(name: str, *, num_tokens: int = 1024, num_requests: int = 8, seed: int = 0) -> Trace:
    """Decode steps of one token, K distinct experts drawn evenly from E in each layer.

    ``name`` is a model preset; raises ``ValueError`` for an unknown one.
    """
    spec = ModelSpec.preset(name)
    layers, experts, top_k = spec.num_moe_layers, spec.n_routed_experts, spec.num_experts_per_tok
    rng = np.random.default_rng(seed)
    ids = np.empty((num_tokens, layers, top_k), np.uint16)
    for token in range(num_tokens):
        ids[token] = np.argpartition(rng.random((layers, experts)), top_k, axis=1)[:, :top_k]
    header = TraceHeader(
        model=name, model_type=spec.model_type, num_layers=layers, num_experts=experts, top_k=top_k,
        model_layer_of_layer=tuple(spec.model_layer_of_layer), expert_bytes=(spec.expert_bytes("int4_g32"),) * layers,
        hidden_size=spec.hidden_size, moe_intermediate_size=spec.moe_intermediate_size, gate_weight_kind="normalised",
        slot_order="unknown", engine="none: uniform random routing", quantization="int4_g32", licence="CC0-1.0",
        provenance=f"moelab.execution.uniform, seed {seed}", synthetic=True, model_fingerprint=spec.fingerprint,
    )  # fmt: skip
    per_request = -(-num_tokens // num_requests)
    row = np.arange(num_tokens)
    tokens = TokenTable.build(step=row, request=row // per_request, position=row % per_request, phase=int(Phase.DECODE))
    return Trace(header, ids, np.full(ids.shape, 1 / top_k, np.float16), tokens)
