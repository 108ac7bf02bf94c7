"""The tensors of a model: the one list from which parameters and bytes are both counted.  Floor 0.

`tensors_of(spec)` gives one row per distinct tensor with how often it occurs. Shapes are those of
the checkpoint's projections, `[rows, columns]` = [outputs, inputs]; per expert, not fused. The list
follows transformers 5.23 and is tested against its parameter counts part by part (the router's
correction bias, a buffer there, is counted: it is a stored tensor that decides the routing).

Multi-token-prediction layers (`num_nextn_predict_layers`) and vision towers are NOT counted:
engines skip them at decode, and no facts here give their shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moelab.domain.model_families import FAMILIES
from moelab.domain.weight_formats import vector_bytes, weight_format

if TYPE_CHECKING:
    from moelab.domain.model import ModelSpec

PARTS: tuple[str, ...] = (
    "attention",
    "indexer",
    "dense_mlp",
    "shared_experts",
    "router",
    "routed_experts",
    "norms",
    "embedding",
    "lm_head",
)


@dataclass(frozen=True)
class Tensor:
    """`num` tensors of one shape. `kind`: "matrix" takes the format of its part, "vector" stays
    plain beside it (2 bytes, or 4 beside float32), "float32" is always 4 bytes a value."""

    part: str
    name: str
    num: int
    rows: int
    columns: int
    kind: str = "matrix"

    @property
    def params(self) -> int:
        return self.num * self.rows * self.columns

    def bytes_in(self, format_name: str) -> int:
        """Bytes of all `num` tensors when the part is stored in `format_name`."""
        if self.kind == "matrix":
            return self.num * weight_format(format_name)(self.rows, self.columns)
        if self.kind == "float32":
            return 4 * self.params
        return self.num * vector_bytes(format_name, self.rows * self.columns)


def expert_tensors(spec: ModelSpec) -> tuple[Tensor, ...]:
    """The tensors of ONE routed expert: gate_proj and up_proj [I, H], down_proj [H, I], biases."""
    hidden, inner = spec.expert_hidden_size, spec.moe_intermediate_size
    tensors = [
        Tensor("routed_experts", "gate_proj", 1, inner, hidden),
        Tensor("routed_experts", "up_proj", 1, inner, hidden),
        Tensor("routed_experts", "down_proj", 1, hidden, inner),
    ]
    if FAMILIES[spec.family].expert_bias:
        tensors += [
            Tensor("routed_experts", "gate_proj.bias", 1, 1, inner, "vector"),
            Tensor("routed_experts", "up_proj.bias", 1, 1, inner, "vector"),
            Tensor("routed_experts", "down_proj.bias", 1, 1, hidden, "vector"),
        ]
    return tuple(tensors)


def tensors_of(spec: ModelSpec) -> tuple[Tensor, ...]:
    """Every tensor of the text model, MTP layers excluded. The caller checks `sizes_exact`."""
    num_layers, num_moe, hidden = spec.num_hidden_layers, spec.num_moe_layers, spec.hidden_size
    family = FAMILIES[spec.family]
    tensors = [
        Tensor(part, name, num * num_layers, rows, columns, kind)
        for part, name, num, rows, columns, kind in _attention(spec)
    ]
    tensors += _indexer(spec)
    num_dense = num_layers - num_moe
    if num_dense and spec.intermediate_size:
        tensors += _mlp("dense_mlp", num_dense, hidden, spec.intermediate_size)
    if spec.n_shared_experts:
        tensors += _mlp("shared_experts", num_moe, hidden, spec.n_shared_experts * spec.moe_intermediate_size)
    experts = spec.n_routed_experts
    tensors.append(Tensor("router", "gate", num_moe, experts, hidden))
    if spec.use_routing_bias:
        kind = "float32" if family.router_bias == "correction" else "vector"
        tensors.append(Tensor("router", "bias", num_moe, 1, experts, kind))
    tensors += [
        Tensor(one.part, one.name, num_moe * experts, one.rows, one.columns, one.kind) for one in expert_tensors(spec)
    ]
    tensors += [
        Tensor("norms", "input_layernorm, post_attention_layernorm", 2 * num_layers, 1, hidden, "vector"),
        Tensor("norms", "norm", 1, 1, hidden, "vector"),
        Tensor("embedding", "embed_tokens", 1, spec.vocab_size, hidden),
    ]
    if not spec.tie_word_embeddings:
        tensors.append(Tensor("lm_head", "lm_head", 1, spec.vocab_size, hidden))
    return tuple(tensors)


def _mlp(part: str, num: int, hidden: int, inner: int) -> list[Tensor]:
    return [
        Tensor(part, "gate_proj", num, inner, hidden),
        Tensor(part, "up_proj", num, inner, hidden),
        Tensor(part, "down_proj", num, hidden, inner),
    ]


_Row = tuple[str, str, int, int, int, str]


def _attention(spec: ModelSpec) -> list[_Row]:
    """(part, name, number per layer, rows, columns, kind) of one attention block."""
    hidden, heads = spec.hidden_size, spec.num_attention_heads
    rows: list[_Row] = []

    def linear(name: str, outputs: int, inputs: int, bias: bool = False) -> None:
        rows.append(("attention", name, 1, outputs, inputs, "matrix"))
        if bias:
            rows.append(("attention", f"{name}.bias", 1, 1, outputs, "vector"))

    def vector(name: str, length: int) -> None:
        rows.append(("attention", name, 1, 1, length, "vector"))

    bias = spec.attention_bias
    if spec.kv_lora_rank is not None:
        latent, rope = spec.kv_lora_rank, spec.qk_rope_head_dim or 0
        nope, value = spec.qk_nope_head_dim or 0, spec.v_head_dim or 0
        if spec.q_lora_rank is None:
            linear("q_proj", heads * (nope + rope), hidden)
        else:
            linear("q_a_proj", spec.q_lora_rank, hidden, bias)
            vector("q_a_layernorm", spec.q_lora_rank)
            linear("q_b_proj", heads * (nope + rope), spec.q_lora_rank)
        linear("kv_a_proj_with_mqa", latent + rope, hidden, bias)
        vector("kv_a_layernorm", latent)
        linear("kv_b_proj", heads * (nope + value), latent)
        linear("o_proj", hidden, heads * value, bias)
        return rows
    family = FAMILIES[spec.family]
    head_dim, kv_heads = spec.head_dim or 0, spec.num_key_value_heads
    linear("q_proj", heads * head_dim, hidden, bias)
    linear("k_proj", kv_heads * head_dim, hidden, bias)
    linear("v_proj", kv_heads * head_dim, hidden, bias)
    linear("o_proj", hidden, heads * head_dim, bias and family.output_bias)
    if spec.use_qk_norm:
        full = family.qk_norm == "full"
        vector("q_norm", head_dim * (heads if full else 1))
        vector("k_norm", head_dim * (kv_heads if full else 1))
    if family.sinks:
        vector("sinks", heads)
    return rows


def _indexer(spec: ModelSpec) -> list[Tensor]:
    """The DSA indexer of the "full" layers. `weights_proj` stays plain: checkpoints never quantise it."""
    if spec.indexer_types is None:
        return []
    num = spec.num_indexer_layers
    heads, dim = spec.index_n_heads or 0, spec.index_head_dim or 0
    return [
        Tensor("indexer", "wq_b", num, heads * dim, spec.q_lora_rank or 0),
        Tensor("indexer", "wk", num, dim, spec.hidden_size),
        Tensor("indexer", "k_norm", 2 * num, 1, dim, "vector"),  # a LayerNorm: weight and bias
        Tensor("indexer", "weights_proj", num, heads, spec.hidden_size, "vector"),
    ]
