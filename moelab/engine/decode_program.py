"""DecodeProgram: a decode step of a model with latent attention as one native list of operations.

Between embedding and logits no tensor of torch is touched and no Python runs: a decode step is one call of the library,
unless a fast tier takes a share of the experts of each layer.
Activations are float32 throughout; weights, routers and experts are the model's packed ones. The same model by torch
calls is `models/deepseek_v3.py`, which prefill and machines without native kernels use. It does not know requests or
sampling. Floor 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from moelab.engine.attention import LATENT_NORM_EPS, LatentAttention, StepPositions
from moelab.engine.cache import LatentCache
from moelab.engine.dense import KernelLinear, KernelLinears, KernelMLP, Linear
from moelab.engine.step_routing import StepRouting
from moelab.kernels import RoutedExperts
from moelab.kernels.native import sized
from moelab.kernels.ops import Attention, Ops, attend_address, attention_chunks
from moelab.kernels.step_memory import StepMemory

if TYPE_CHECKING:
    from moelab.engine.fast_tier.fast_tier import FastTier
    from moelab.engine.models.deepseek_v3 import Layer, Model

NATIVE_TOKENS = 64  # sequences that decode together at most; more go through torch
ALONE_BYTES = 4_000_000  # a step that reads fewer weights is faster on the caller alone (docs/log.md)
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a layer's experts stand in the list: first operation after the router, and the sum that takes their output.

    `x` [T, H] is what the experts see, `routed` [T, H] what those at home made of it.
    """

    layer: int
    routed_at: int
    add_at: int
    x: np.ndarray
    routed: np.ndarray


class DecodeProgram:
    """One new token of each of `num_tokens` sequences. Made from a model whose linear layers are packed.

    Programs of one model share a `memory` and are never run at the same time. `TypeError` for layers of another kind.
    """

    def __init__(self, model: Model, num_tokens: int, memory: StepMemory) -> None:
        # Not the model itself, which holds its programs: a cycle would keep the weights until a garbage collection.
        spec, linears, lm_head = model.spec, of_kind(KernelLinears, model.linears), of_kind(KernelLinear, model.lm_head)
        self._embed_tokens, self._rotary = model.embed_tokens, model.rotary
        self.num_tokens = num_tokens
        isa = lm_head.packed.isa.isa
        self.ops = Ops(num_tokens, isa, memory)
        self._attend = {kind: attend_address(isa, kind) for kind in (False, True)}
        self.hidden = self.ops.array("hidden", num_tokens, spec.hidden_size)
        self.row_of_token = self.ops.own(np.zeros(num_tokens), np.int64)
        self.position_of_token = self.ops.own(np.zeros(num_tokens), np.int64)
        self._attentions: list[Attention] = []
        routed = [of_kind(RoutedExperts, layer) for layer in model.routed]
        shape = (len(routed), num_tokens, spec.num_experts_per_tok)
        self.expert_ids = self.ops.own(np.zeros(shape), np.int32)
        self.gate_weights = self.ops.own(np.zeros(shape))
        # What the kernels compute: with a fast tier only what runs from home.
        self.home_ids = self.expert_ids if model.fast_tier is None else self.ops.own(np.zeros(shape), np.int32)
        self._moments: list[Moment] = []
        self._fast_tier = model.fast_tier
        self._partial = np.zeros(0, np.uint8)
        for number, layer in enumerate(model.layers):
            self.ops.part = f"layer {number}"
            self._layer(layer)
        self.ops.part = ""
        self._stop = len(self.ops)  # without norm and head
        normed = self.ops.norm("final norm", self.hidden, _numpy(model.norm), model.eps)
        self.logits = self._linear("lm_head", lm_head, normed)
        expert_bytes = sum(layer.layout.expert_bytes for layer in routed)
        step_bytes = sum(made.num_bytes for made in linears.made) + expert_bytes * spec.num_experts_per_tok * num_tokens
        self.pool = linears.pool if step_bytes >= ALONE_BYTES else None

    def _linear(self, name: str, layer: Linear, x: np.ndarray) -> np.ndarray:
        linear = of_kind(KernelLinear, layer)
        return self.ops.linear(name, linear.packed, x, None if linear.bias is None else _numpy(linear.bias))

    def _mlp(self, name: str, layer: Linear | None, x: np.ndarray) -> np.ndarray:
        ids, gates = self.ops.own(np.zeros((len(x), 1)), np.int32), self.ops.own(np.ones((len(x), 1)))
        return self.ops.experts(name, of_kind(KernelMLP, layer).expert, x, ids, gates)

    def _layer(self, layer: Layer) -> None:
        ops, hidden = self.ops, self.hidden
        x = ops.norm("input norm", hidden, _numpy(layer.input_layernorm), layer.eps)
        ops.add(hidden, self._attention(layer.attention, x))
        x = ops.norm("post norm", hidden, _numpy(layer.post_attention_layernorm), layer.eps)
        if layer.moe_layer is None:
            ops.add(hidden, self._mlp("mlp", layer.mlp, x))
            return
        router = layer.router
        logits = self._linear("router", router.logits, x)
        ids, gates = self.expert_ids[layer.moe_layer], self.gate_weights[layer.moe_layer]
        ops.route(
            logits, _numpy(router.bias), ids, gates, router.n_group, router.topk_group, router.normalise,
            router.scaling_factor,
        )  # fmt: skip
        routed_at = len(ops)
        home_ids = self.home_ids[layer.moe_layer]
        routed = ops.experts("routed", of_kind(RoutedExperts, layer.routed), x, home_ids, gates)
        shared = None if layer.mlp is None else self._mlp("shared", layer.mlp, x)
        self._moments.append(Moment(layer.moe_layer, routed_at, len(ops), x, routed))
        ops.add(hidden, routed, shared)

    def _attention(self, weights: LatentAttention, x: np.ndarray) -> np.ndarray:
        ops, heads, rows = self.ops, weights.num_heads, weights.num_heads * len(x)
        a = self._linear("a_proj", weights.a_proj, x)
        q = a[:, : a.shape[1] - weights.kv_rank - weights.rope_dim]
        latent = a[:, q.shape[1] :]
        if weights.q_b_proj is not None and weights.q_norm is not None:
            normed = ops.norm("q norm", q, _numpy(weights.q_norm), LATENT_NORM_EPS)
            q = self._linear("q_b_proj", weights.q_b_proj, normed)
        kv_norm = ops.constant("kv norm", _numpy(weights.kv_norm))
        query_nope = ops.array("query_nope", rows, weights.nope_dim)
        query_rope = ops.array("query_rope", rows, weights.rope_dim)
        mixed = ops.array("mixed", rows, weights.kv_rank)
        attention = sized(
            Attention, num_tokens=len(x), num_heads=heads, kv_rank=weights.kv_rank, nope_dim=weights.nope_dim,
            rope_dim=weights.rope_dim, a=latent.ctypes.data, a_stride=latent.strides[0] // 4,
            kv_norm=kv_norm.ctypes.data, eps=LATENT_NORM_EPS, softmax_scale=weights.softmax_scale,
            interleave=weights.interleave, row_of_token=self.row_of_token.ctypes.data,
            position_of_token=self.position_of_token.ctypes.data, q=q.ctypes.data, q_stride=q.strides[0] // 4,
            query_nope=query_nope.ctypes.data, query_rope=query_rope.ctypes.data, mixed=mixed.ctypes.data,
            mixed_stride=weights.kv_rank,
        )  # fmt: skip
        self._attentions.append(attention)
        ops.attention(attention, part="latent")
        ops.attention(attention, part="query")
        query = self._linear("key_up", weights.key_up, query_nope)
        attention.query, attention.query_stride = query.ctypes.data, query.strides[0] // 4
        ops.attention(attention, part="attend")
        ops.attention(attention, part="merge")
        values = ops.gather("values", self._linear("value_up", weights.value_up, mixed), heads)
        return self._linear("o_proj", weights.o_proj, values)

    def _point(self, at: StepPositions, cache: LatentCache) -> None:
        """Addresses and positions of this step."""
        self.row_of_token[:] = np.arange(at.row, at.row + self.num_tokens)
        self.position_of_token[:] = at.positions[:, 0].numpy()
        # Not those of the longest context: longer chunks begin at 8,193 positions, so that a shorter one may have more.
        chunks = max(attention_chunks(int(position) + 1) for position in self.position_of_token)
        heads, state = self._attentions[0].num_heads, self._attentions[0].kv_rank + 2
        self._partial = self.ops.memory.block("partial", 4 * self.num_tokens * chunks * heads * state)
        cos, sin = self._rotary.upto(at.length)
        bf16 = cache.layers[0].dtype == torch.bfloat16
        shared = (cos.data_ptr(), sin.data_ptr(), bf16, self._attend[bf16], self._partial.ctypes.data, chunks)
        for attention, memory in zip(self._attentions, cache.layers, strict=True):
            attention.cache, attention.row_numbers = memory.data_ptr(), memory.stride(0)
            (
                attention.cos, attention.sin, attention.cache_bf16, attention.attend, attention.partial,
                attention.max_chunks,
            ) = shared  # fmt: skip

    def run(
        self,
        token_ids: torch.Tensor,
        at: StepPositions,
        cache: LatentCache,
        routing: StepRouting | None,
        with_logits: bool,
    ) -> torch.Tensor | None:
        """token_ids [B, 1] -> logits float32 [B, 1, vocab], or None; writes the latents of the step into `cache`.

        `FloatingPointError` where a router's logits hold a NaN: it names layer and row.
        """
        self._point(at, cache)
        self.hidden[:] = F.embedding(token_ids[:, 0], self._embed_tokens).float().numpy()
        stop = len(self.ops) if with_logits else self._stop
        if self._fast_tier is None:
            self.ops.run(self.pool, 0, stop)
        else:
            self._run_beside(self._fast_tier, stop)
        if routing is not None:
            routing.expert_ids[:], routing.gate_weights[:] = self.expert_ids, self.gate_weights
        return torch.from_numpy(self.logits.copy())[:, None] if with_logits else None

    def _run_beside(self, tier: FastTier, stop: int) -> None:
        """The list in pieces: between routing and experts of each layer the tier takes its share of them."""
        start = 0
        for moment in self._moments:
            layer = moment.layer
            self.ops.run(self.pool, start, moment.routed_at)
            share = tier.serve(layer, self.expert_ids[layer], self.gate_weights[layer])
            self.home_ids[layer] = share.home_ids
            part = tier.compute(share, torch.from_numpy(moment.x))
            self.ops.run(self.pool, moment.routed_at, moment.add_at)
            if part is not None:
                np.add(moment.routed, part.cpu().numpy(), out=moment.routed)
            start = moment.add_at
        self.ops.run(self.pool, start, stop)


def of_kind(kind: type[Kind], layer: object) -> Kind:
    """The layer, if it is of that kind."""
    if not isinstance(layer, kind):
        raise TypeError(
            f"decode step: expected {kind.__name__} throughout, got {type(layer).__name__}; models of other layers "
            "decode by torch"
        )
    return layer


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.float().numpy()
    return array
