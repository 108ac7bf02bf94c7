"""DeepSeek-V3 and everything built like it (Kimi K2): MLA, sigmoid router, shared and routed experts.

DeepSeek-V3 technical report (2024). Attention is absorbed, the routed experts are somebody else's
(`routed[layer].forward`), so are the linear layers (`linears`), the rest is torch on one device:
prefill, and decode where the linear layers are torch's. Other decode steps are one native call (`decode_program`).
Multi-token-prediction layers are not run. It does not know files, sampling or requests. Floor 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from moelab.domain.model import ModelSpec
from moelab.engine.attention import LatentAttention, StepPositions
from moelab.engine.between import Between
from moelab.engine.cache import LatentCache
from moelab.engine.decode_program import NATIVE_TOKENS, DecodeProgram
from moelab.engine.dense import KernelLinears, Linear, Linears, rms_norm
from moelab.engine.latent_shapes import dense_shapes, head_sizes
from moelab.engine.rope import RopeSettings, RotaryTable
from moelab.engine.router import Router
from moelab.engine.share import Share
from moelab.engine.step_routing import StepRouting
from moelab.kernels.step_memory import StepMemory

NAME_FORMS = (("model.", "lm_head."),)
SKIPPED_PREFIXES: tuple[str, ...] = ()

Want = Literal["all", "last", "none"]


class Routed(Protocol):
    """The routed experts of one layer: x float32 [T, H], ids [T, K], gate weights float32 [T, K] -> float32 [T, H]."""

    def forward(self, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray) -> np.ndarray: ...


class Read(Protocol):
    """A tensor by canonical name: in the dense type, `exact` (as stored), float32, or `mapped` (a view for linears)."""

    def __call__(self, name: str, kind: Literal["dense", "exact", "float32", "mapped"] = "dense") -> torch.Tensor: ...


class Model:
    """The weights of one model and its forward pass."""

    def __init__(
        self,
        spec: ModelSpec,
        text_config: Mapping[str, Any],
        read: Read,
        routed: Sequence[Routed],
        device: torch.device,
        linears: Linears,
    ) -> None:
        self.spec = spec
        self.device = device
        self.eps = float(text_config["rms_norm_eps"])
        self.rope = RopeSettings.from_text_config(text_config)
        _, rope, _, kv_rank = head_sizes(spec)
        self.rotary = RotaryTable(self.rope, rope, device)
        self.cache_width = kv_rank + rope
        # Only rows are looked up, so the embedding stays as small as it is stored.
        self.embed_tokens = read("model.embed_tokens.weight", "exact")
        self.norm = read("model.norm.weight")
        self.dtype = self.norm.dtype
        self.linears = linears
        self.lm_head = linears.linear(
            "lm_head", read("model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight", "mapped")
        )
        self.routed = list(routed)
        self.layers = [Layer(self, layer, read) for layer in range(spec.num_hidden_layers)]
        routing = [layer for layer in self.layers if layer.moe_layer is not None]
        for layer, following in pairwise(routing):
            layer.following = following
        self.routers = [layer.router for layer in routing]
        self._programs: dict[int, DecodeProgram] = {}  # by number of sequences; the last one is the one used last
        self.step_memory = StepMemory()
        self.between = Between(self.routers)

    def forget_programs(self) -> None:
        """Addresses that are written into them have changed."""
        self._programs.clear()

    def use_between(self, between: Between) -> None:
        """What stands between routers and experts from the next step on."""
        self.between = between
        self._programs.clear()  # which ids the kernels read is written into them

    @staticmethod
    def check(text_config: Mapping[str, Any]) -> None:
        """ValueError for a config that asks for what this file does not compute."""
        for field, only in (
            ("hidden_act", "silu"), ("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1),
        ):  # fmt: skip
            if text_config.get(field) not in (None, only):
                raise ValueError(
                    f"{field}: expected {only!r} for deepseek_v3, got {text_config[field]!r}; use an engine that has it"
                )
        if text_config.get("rms_norm_eps") is None:
            raise ValueError("rms_norm_eps: expected a number, got nothing; pass the model's whole config.json")
        RopeSettings.from_text_config(text_config)

    @staticmethod
    def dense_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        """Every tensor that is not a routed expert, by canonical name."""
        return dense_shapes(spec)

    def positions(self, cache: LatentCache, row: int, batch: int, num_queries: int) -> StepPositions:
        """Where `num_queries` new tokens of each of the rows [row, row + batch) stand; makes room for them."""
        starts = tuple(cache.lengths[row : row + batch])
        length = max(starts) + num_queries
        cache.reserve(length)
        return StepPositions(row, starts, num_queries, length, self.rotary, self.device, self.dtype)

    def forward(
        self,
        token_ids: torch.Tensor,
        at: StepPositions,
        cache: LatentCache,
        routing: StepRouting | None = None,
        want: Want = "all",
    ) -> torch.Tensor | None:
        """token_ids [B, Q] -> logits float32 [B, Q or 1, vocab], or None. The caller moves `cache.lengths`."""
        batch, num_queries = token_ids.shape
        if isinstance(self.linears, KernelLinears) and num_queries == 1 and batch <= NATIVE_TOKENS:
            return self.program(batch).run(token_ids, at, cache, routing, want != "none")
        hidden = F.embedding(token_ids, self.embed_tokens).to(self.dtype)
        for layer, memory in zip(self.layers, cache.layers, strict=True):
            hidden = layer(hidden, at, memory, routing, self.between)
        if want == "none":
            return None
        if want == "last":
            hidden = hidden[:, -1:]
        return self.lm_head(rms_norm(hidden, self.norm, self.eps)).float()

    def program(self, num_tokens: int) -> DecodeProgram:
        """The decode step of `num_tokens` sequences as one native list of operations, made once."""
        program = self._programs.pop(num_tokens, None) or DecodeProgram(self, num_tokens, self.step_memory)
        self._programs[num_tokens] = program
        return program

    @property
    def last_program(self) -> DecodeProgram | None:
        """That of the latest native decode step."""
        return next(reversed(self._programs.values()), None)


class Layer:
    """One decoder layer: attention, then the dense MLP or the experts, each around a residual."""

    def __init__(self, model: Model, layer: int, read: Read) -> None:
        spec, prefix = model.spec, f"model.layers.{layer}."
        self.name = f"layer {layer}"
        self.eps = model.eps
        self.input_layernorm = read(f"{prefix}input_layernorm.weight")
        self.post_attention_layernorm = read(f"{prefix}post_attention_layernorm.weight")
        self.attention = read_attention(model, f"{prefix}self_attn.", read)
        self.moe_layer: int | None = None
        self.following: Layer | None = None  # the next MoE layer
        self.mlp: Linear | None = None
        if layer in spec.model_layer_of_layer:
            self.moe_layer = spec.model_layer_of_layer.index(layer)
            self.routed = model.routed[self.moe_layer]
            self.router = Router(
                model.linears.exact(f"{prefix}mlp.gate", read(f"{prefix}mlp.gate.weight", "mapped")),
                read(f"{prefix}mlp.gate.e_score_correction_bias", "float32"),
                spec.num_experts_per_tok,
                spec.n_group,
                spec.topk_group,
                spec.norm_topk_prob,
                spec.routed_scaling_factor,
            )
            if spec.n_shared_experts:
                self.mlp = read_mlp(model, f"{prefix}mlp.shared_experts.", read)
        else:
            self.mlp = read_mlp(model, f"{prefix}mlp.", read)

    def __call__(
        self,
        hidden: torch.Tensor,
        at: StepPositions,
        cache: torch.Tensor,
        routing: StepRouting | None,
        between: Between,
    ) -> torch.Tensor:
        hidden = hidden + self.attention(rms_norm(hidden, self.input_layernorm, self.eps), at, cache)
        x = rms_norm(hidden, self.post_attention_layernorm, self.eps)
        if self.moe_layer is None:
            assert self.mlp is not None
            return hidden + self.mlp(x)
        before, between.deferred = between.deferred, None
        stale = None
        if between.needs_stale and self.following is not None:
            stale = self.following.guess(hidden).int().cpu().numpy()
        hidden = hidden + self._experts(x.flatten(0, 1), routing, between, stale).view_as(hidden)
        return hidden if before is None else hidden + before.view_as(hidden)

    def guess(self, hidden: torch.Tensor) -> torch.Tensor:
        """Ids [T, K] that this layer's router would choose on a hidden state [B, Q, H] of the MoE layer before."""
        x = rms_norm(hidden, self.post_attention_layernorm, self.eps)
        return self.router(x.flatten(0, 1))[0]

    def _experts(
        self, x: torch.Tensor, routing: StepRouting | None, between: Between, stale: np.ndarray | None
    ) -> torch.Tensor:
        assert self.moe_layer is not None
        scores = self.router.scores(x)
        ids, weights = self.router.choose(scores)
        ids_host, weights_host, x_host = ids.int().cpu().numpy(), weights.cpu().numpy(), x.float().cpu().numpy()
        if np.isnan(weights_host.sum()):  # a NaN ranks first, so that its token has one
            row = int(np.isnan(weights_host).any(axis=1).argmax())
            raise FloatingPointError(
                f"{self.name} router: expected numbers as logits; got NaN for row {row} of the step: a weight or an "
                "activation before it is not finite, check the checkpoint"
            )
        scores_host = scores.cpu().numpy() if between.needs_scores else None
        work = between.divide(self.moe_layer, ids_host, weights_host, scores_host, stale)
        if routing is not None:
            routing.expert_ids[self.moe_layer], routing.gate_weights[self.moe_layer] = ids_host, weights_host
            between.note_extras(routing, self.moe_layer, scores_host, None)
            if stale is not None:
                between.note_extras(routing, self.moe_layer + 1, None, stale)
        # On cuda what the device computes is queued first and runs while the CPU computes its experts.
        part, later = between.compute(work.now, x), between.compute(work.later, x)
        shared = self.mlp(x) if self.mlp is not None else None
        routed = self._sum(x, x_host, work.now, part)
        if work.later is not None:
            between.deferred = self._sum(x, x_host, work.later, later)
        return routed if shared is None else routed + shared

    def _sum(self, x: torch.Tensor, x_host: np.ndarray, share: Share, part: torch.Tensor | None) -> torch.Tensor:
        """Experts at home, then the device's part: [T, H] like x."""
        routed = torch.from_numpy(self.routed.forward(x_host, share.home_ids, share.gate_weights))
        if part is not None:
            routed = routed.to(part.device) + part
        return routed.to(x.device, x.dtype)


def read_mlp(model: Model, prefix: str, read: Read) -> Linear:
    """Gated MLP under `prefix`."""
    return model.linears.mlp(
        prefix, *(read(f"{prefix}{name}_proj.weight", "mapped") for name in ("gate", "up", "down"))
    )


def read_attention(model: Model, prefix: str, read: Read) -> LatentAttention:
    """Latent attention under `prefix`: first projections joined, kv_b_proj split into W_UK and W_UV."""
    spec, linear = model.spec, model.linears.linear
    nope, rope, v_dim, kv_rank = head_sizes(spec)
    first = "q_proj" if spec.q_lora_rank is None else "q_a_proj"
    a_bias = None
    if spec.attention_bias:
        kv_bias = read(f"{prefix}kv_a_proj_with_mqa.bias")
        q_rows = spec.num_attention_heads * (nope + rope)
        q_bias = kv_bias.new_zeros(q_rows) if spec.q_lora_rank is None else read(f"{prefix}q_a_proj.bias")
        a_bias = torch.cat((q_bias, kv_bias))
    kv_b = read(f"{prefix}kv_b_proj.weight", "mapped").view(spec.num_attention_heads, nope + v_dim, kv_rank)
    return LatentAttention(
        num_heads=spec.num_attention_heads,
        nope_dim=nope,
        rope_dim=rope,
        v_dim=v_dim,
        kv_rank=kv_rank,
        softmax_scale=model.rope.softmax_scale(nope + rope),
        interleave=model.rope.interleave,
        a_proj=linear(
            f"{prefix}a_proj",
            read(f"{prefix}{first}.weight", "mapped"),
            read(f"{prefix}kv_a_proj_with_mqa.weight", "mapped"),
            bias=a_bias,
        ),
        q_norm=None if spec.q_lora_rank is None else read(f"{prefix}q_a_layernorm.weight"),
        q_b_proj=None
        if spec.q_lora_rank is None
        else linear(f"{prefix}q_b_proj", read(f"{prefix}q_b_proj.weight", "mapped")),
        kv_norm=read(f"{prefix}kv_a_layernorm.weight"),
        key_up=model.linears.heads(f"{prefix}key_up", kv_b[:, :nope].transpose(1, 2)),
        value_up=model.linears.heads(f"{prefix}value_up", kv_b[:, nope:]),
        o_proj=linear(
            f"{prefix}o_proj",
            read(f"{prefix}o_proj.weight", "mapped"),
            bias=read(f"{prefix}o_proj.bias") if spec.attention_bias else None,
        ),
    )
