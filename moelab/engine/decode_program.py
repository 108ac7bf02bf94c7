"""DecodeProgram: a decode step of a model with latent attention as one native list of operations.

Between embedding and logits no tensor of torch is touched and no Python runs: a decode step is one call of the library,
unless something acts between the routers and their experts (`between`).
Activations are float32 throughout; weights, routers and experts are the model's packed ones. The same model by torch
calls is `models/deepseek_v3.py`, which prefill and machines without native kernels use. It does not know requests or
sampling. Floor 2.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from moelab.domain.trace import NO_EXPERT
from moelab.engine.attention import LATENT_NORM_EPS, LatentAttention, StepPositions
from moelab.engine.between import unrouted
from moelab.engine.cache import LatentCache
from moelab.engine.dense import KernelLinear, KernelLinears, KernelMLP, Linear
from moelab.engine.router import Router
from moelab.engine.step_routing import StepRouting
from moelab.kernels import RoutedExperts
from moelab.kernels.native import sized
from moelab.kernels.ops import Attention, Ops, attend_address, attention_chunks
from moelab.kernels.step_memory import StepMemory

if TYPE_CHECKING:
    from moelab.engine.models.deepseek_v3 import Layer, Model

NATIVE_TOKENS = 64  # sequences that decode together at most; more go through torch
ALONE_BYTES = 4_000_000  # a step that reads fewer weights is faster on the caller alone; the log has no figure of it
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a layer's experts stand in the list: first operation after the router, the sum that takes their output, and
    the end of those that are put off.

    `x` [T, H] is what the experts see, `routed` [T, H] what those at home made of it, `deferred` what those made of it
    that are added in the next MoE layer.
    """

    layer: int
    routed_at: int
    add_at: int
    deferred_at: int
    x: np.ndarray
    routed: np.ndarray
    deferred: np.ndarray | None


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
        self._between = between = model.between
        # What the kernels compute: beside a fast tier only what runs from home.
        self.home_ids = self.ops.own(np.zeros(shape), np.int32) if between.acts else self.expert_ids
        self.later_ids = self.ops.own(unrouted(shape), np.int32) if between.defers else None
        self.scores = self.stale_ids = None
        if between.needs_scores:
            self.scores = self.ops.own(np.zeros((*shape[:2], spec.n_routed_experts)))
        if between.needs_stale:
            self.stale_ids = self.ops.own(unrouted(shape), np.int32)
            self._stale_gates = self.ops.own(np.zeros(shape[1:]))
        self._moments: list[Moment] = []
        self._partial = np.zeros(0, np.uint8)
        self._shared: tuple[object, ...] = ()  # what the attentions were pointed at, and their caches
        self._caches: list[weakref.ref[torch.Tensor]] = []
        for number, layer in enumerate(model.layers):
            self.ops.part = f"layer {number}"
            self._layer(layer)
        self.ops.part = ""
        self._stop = len(self.ops)  # without norm and head
        normed = self.ops.norm("final norm", self.hidden, _numpy(model.norm), model.eps)
        self.logits = self._linear("lm_head", lm_head, normed)
        expert_bytes = sum(layer.layout.expert_bytes for layer in routed)
        step_bytes = sum(made.num_bytes for made in linears.made) + expert_bytes * spec.num_experts_per_tok * num_tokens
        # Experts on several nodes are read by their nodes' workers, however little it is.
        on_nodes = any(layer.num_nodes > 1 for layer in routed)
        self.pool = linears.pool if step_bytes >= ALONE_BYTES or on_nodes else None

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
        moe_layer = layer.moe_layer
        ids, gates = self.expert_ids[moe_layer], self.gate_weights[moe_layer]
        self._route("router", layer.router, x, ids, gates, None if self.scores is None else self.scores[moe_layer])
        if self.stale_ids is not None and layer.following is not None:
            self._guess(layer.following, self.stale_ids[moe_layer + 1])
        routed_at, experts = len(ops), of_kind(RoutedExperts, layer.routed)
        routed = ops.experts("routed", experts, x, self.home_ids[moe_layer], gates)
        shared = None if layer.mlp is None else self._mlp("shared", layer.mlp, x)
        add_at, deferred = len(ops), None
        ops.add(hidden, routed, shared)
        if self.later_ids is not None:
            if self._moments and self._moments[-1].deferred is not None:
                ops.add(hidden, self._moments[-1].deferred)
            if layer.following is not None:
                deferred = ops.experts("deferred", experts, x, self.later_ids[moe_layer], gates)
        self._moments.append(Moment(moe_layer, routed_at, add_at, len(ops), x, routed, deferred))

    def _route(
        self, name: str, router: Router, x: np.ndarray, ids: np.ndarray, gates: np.ndarray,
        scores: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.ops.route(
            self._linear(name, router.logits, x), _numpy(router.bias), ids, gates, router.n_group, router.topk_group,
            router.normalise, router.scaling_factor, scores,
        )  # fmt: skip

    def _guess(self, following: Layer, ids: np.ndarray) -> None:
        """What the router of the next MoE layer would choose on the hidden state of this one."""
        ops, here = self.ops, self.ops.part
        ops.part = following.name
        x = ops.norm("stale norm", self.hidden, _numpy(following.post_attention_layernorm), following.eps)
        self._route("stale router", following.router, x, ids, self._stale_gates)
        ops.part = here

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
        """Addresses and positions of this step; what is as in the step before is left: nothing of Python is in a CPU
        cache after gigabytes of weights, so that each line costs microseconds."""
        self.row_of_token[:] = range(at.row, at.row + self.num_tokens)
        self.position_of_token[:] = at.starts
        # Not those of the longest context: longer chunks begin at 8,193 positions, so that a shorter one may have more.
        chunks = max(attention_chunks(position + 1) for position in at.starts)
        heads, state = self._attentions[0].num_heads, self._attentions[0].kv_rank + 2
        self._partial = self.ops.memory.block("partial", 4 * self.num_tokens * chunks * heads * state)
        cos, sin = self._rotary.upto(at.length)
        bf16 = cache.layers[0].dtype == torch.bfloat16
        shared = (cos.data_ptr(), sin.data_ptr(), bf16, self._attend[bf16], self._partial.ctypes.data, chunks)
        same = shared == self._shared and all(was() is now for was, now in zip(self._caches, cache.layers, strict=True))
        if same:
            return
        for attention, memory in zip(self._attentions, cache.layers, strict=True):
            attention.cache, attention.row_numbers = memory.data_ptr(), memory.stride(0)
            (
                attention.cos, attention.sin, attention.cache_bf16, attention.attend, attention.partial,
                attention.max_chunks,
            ) = shared  # fmt: skip
        self._shared, self._caches = shared, [weakref.ref(memory) for memory in cache.layers]

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
        if self._between.acts:
            self._run_between(stop)
        else:
            self.ops.run(self.pool, 0, stop)
        if routing is not None:
            routing.expert_ids[:], routing.gate_weights[:] = self.expert_ids, self.gate_weights
            self._between.note_extras(routing, slice(None), self.scores, self.stale_ids)
        return torch.from_numpy(self.logits.copy())[:, None] if with_logits else None

    def _run_between(self, stop: int) -> None:
        """The list in pieces: between routing and experts of each layer it is said who computes what."""
        start, between = 0, self._between
        for moment in self._moments:
            layer, x = moment.layer, torch.from_numpy(moment.x)
            self.ops.run(self.pool, start, moment.routed_at)
            work = between.divide(layer, self.expert_ids[layer], self.gate_weights[layer], *self._known(layer))
            self.home_ids[layer] = work.now.home_ids
            self._run_beside(moment.routed_at, moment.add_at, moment.routed, between.compute(work.now, x))
            start = moment.add_at
            if self.later_ids is not None and moment.deferred is not None:
                self.later_ids[layer] = NO_EXPERT if work.later is None else work.later.home_ids
                self._run_beside(start, moment.deferred_at, moment.deferred, between.compute(work.later, x))
                start = moment.deferred_at
        self.ops.run(self.pool, start, stop)

    def _run_beside(self, start: int, stop: int, total: np.ndarray, part: torch.Tensor | None) -> None:
        """Operations that end with `total`, and the device's part added to it."""
        self.ops.run(self.pool, start, stop)
        if part is not None:
            np.add(total, part.cpu().numpy(), out=total)

    def _known(self, layer: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Scores of a layer and stale ids of the next one, where they are computed."""
        stale = self.stale_ids is not None and layer + 1 < len(self.stale_ids)
        return (
            None if self.scores is None else self.scores[layer],
            self.stale_ids[layer + 1] if stale and self.stale_ids is not None else None,
        )


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
