"""The fields of a model under HF's names, how they must agree, and their fingerprint.  Floor 0.

What follows from the fields (parameters, bytes) is in `model.py`; how an HF config becomes them, in
`model_config.py`. Lengths are numbers of values; absence is None.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moelab.domain.model_families import FAMILIES, FAMILY_OF_MODEL_TYPE
from moelab.domain.weight_formats import WEIGHT_FORMATS

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
LayerType = Literal["sliding_attention", "full_attention"]
IndexerType = Literal["full", "shared"]

# What tells where a spec came from or how its release was stored, not what is computed.
NOT_ARCHITECTURE = {
    *("name", "model_type", "source", "verified", "notes", "sizes_exact"),
    *("quant_format", "quantized_parts", "max_position_embeddings", "num_nextn_predict_layers"),
}


def _refuse(field: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{field}: expected {expected}, got {got}; correct the config or pass the model's own")


class ModelFields(BaseModel):
    """The fields of a model; `ModelSpec` adds what follows from them.

    Differences from HF's config: `head_dim` is None for MLA (HF changes its meaning between
    releases), `num_key_value_heads` equals the heads there; `intermediate_size` is None when no
    layer is dense; `layer_types` and `sliding_window` are None when no layer slides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    name: str = ""
    model_type: str
    hidden_size: Count
    num_hidden_layers: Count
    vocab_size: Count
    # experts
    n_routed_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    n_shared_experts: CountOrZero = 0
    intermediate_size: Count | None = None
    first_k_dense_replace: CountOrZero = 0
    decoder_sparse_step: Count = 1
    mlp_only_layers: Annotated[tuple[CountOrZero, ...], Field(strict=False)] = ()
    routed_expert_hidden_size: Count | None = None
    hidden_act: str = "silu"
    swiglu_limit: float | None = None
    # router
    scoring_func: str | None = None
    topk_method: str | None = None
    use_routing_bias: bool = False
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    n_group: Count = 1
    topk_group: Count = 1
    # attention
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count | None = None
    attention_bias: bool = False
    use_qk_norm: bool = False
    sliding_window: Count | None = None
    layer_types: Annotated[tuple[LayerType, ...] | None, Field(strict=False)] = None
    q_lora_rank: Count | None = None
    kv_lora_rank: Count | None = None
    qk_nope_head_dim: Count | None = None
    qk_rope_head_dim: Count | None = None
    v_head_dim: Count | None = None
    index_n_heads: Count | None = None
    index_head_dim: Count | None = None
    index_topk: Count | None = None
    indexer_types: Annotated[tuple[IndexerType, ...] | None, Field(strict=False)] = None
    # the rest
    tie_word_embeddings: bool = False
    max_position_embeddings: Count | None = None
    num_nextn_predict_layers: CountOrZero = 0
    quant_format: str = "bf16"
    quantized_parts: Annotated[tuple[str, ...], Field(strict=False)] = ()
    sizes_exact: bool = True
    source: str = ""
    verified: bool = False
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.model_type not in FAMILY_OF_MODEL_TYPE:
            _refuse("model_type", f"one of {', '.join(FAMILY_OF_MODEL_TYPE)}", self.model_type)
        self._check_experts()
        family = FAMILIES[self.family]
        if family.attention == "mla":
            self._check_mla()
        elif family.attention == "gqa":
            self._check_gqa()
        if self.quant_format not in WEIGHT_FORMATS:
            _refuse("quant_format", f"one of {', '.join(WEIGHT_FORMATS)}", self.quant_format)
        if self.sizes_exact and family.why_inexact is not None:
            _refuse("sizes_exact", f"False for {self.family}", True)
        return self

    def _check_experts(self) -> None:
        family, experts, layers = FAMILIES[self.family], self.n_routed_experts, self.num_hidden_layers
        if self.num_experts_per_tok > experts:
            _refuse("num_experts_per_tok", f"at most n_routed_experts = {experts}", self.num_experts_per_tok)
        if experts % self.n_group:
            _refuse("n_group", f"a divisor of n_routed_experts = {experts}", self.n_group)
        if self.topk_group > self.n_group:
            _refuse("topk_group", f"at most n_group = {self.n_group}", self.topk_group)
        if self.n_group > 1 and experts == self.n_group:
            _refuse("n_group", f"at least two experts in each group, at most {experts // 2} groups", self.n_group)
        if self.num_experts_per_tok > (kept := experts // self.n_group * self.topk_group):
            _refuse(
                "num_experts_per_tok",
                f"at most the {kept} experts of topk_group = {self.topk_group} groups",
                self.num_experts_per_tok,
            )
        if self.first_k_dense_replace >= layers:
            _refuse("first_k_dense_replace", f"less than num_hidden_layers = {layers}", self.first_k_dense_replace)
        if any(layer >= layers for layer in self.mlp_only_layers):
            _refuse("mlp_only_layers", f"layers below num_hidden_layers = {layers}", self.mlp_only_layers)
        if not self.model_layer_of_layer:
            _refuse("mlp_only_layers", "at least one MoE layer left", f"0 of {layers}")
        if family.has_first_k_dense is False and self.first_k_dense_replace:
            _refuse("first_k_dense_replace", f"0 for {self.family}", self.first_k_dense_replace)
        if len(self.model_layer_of_layer) < layers and self.intermediate_size is None:
            _refuse("intermediate_size", "the size of the dense layers", None)
        if self.n_shared_experts and not family.has_shared_experts:
            _refuse("n_shared_experts", f"0 for {self.family}", self.n_shared_experts)
        if self.routed_expert_hidden_size is not None and self.family != "kimi_linear":
            _refuse("routed_expert_hidden_size", f"None for {self.family}", self.routed_expert_hidden_size)
        if self.use_routing_bias and family.router_bias is None and family.attention is not None:
            _refuse("use_routing_bias", f"False for {self.family}", True)

    def _check_mla(self) -> None:
        for field in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(self, field) is None:
                _refuse(field, f"an integer for {self.family}", None)
        if self.head_dim is not None:
            _refuse(
                "head_dim", "None for MLA (qk_nope_head_dim, qk_rope_head_dim and v_head_dim say it)", self.head_dim
            )
        if self.num_key_value_heads != self.num_attention_heads:
            _refuse(
                "num_key_value_heads",
                f"num_attention_heads = {self.num_attention_heads} for MLA",
                self.num_key_value_heads,
            )
        if not FAMILIES[self.family].has_indexer:
            if self.indexer_types is not None:
                _refuse("indexer_types", f"None for {self.family}", "a list")
            return
        for field in ("q_lora_rank", "index_n_heads", "index_head_dim", "indexer_types"):
            if getattr(self, field) is None:
                _refuse(field, f"a value for {self.family}, whose indexer needs it", None)
        kinds = self.indexer_types or ()
        if len(kinds) != self.num_hidden_layers:
            _refuse("indexer_types", f"num_hidden_layers = {self.num_hidden_layers} entries", len(kinds))
        if kinds[0] != "full":
            _refuse("indexer_types", "the first layer to be full (it has nothing to share)", kinds[0])

    def _check_gqa(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.kv_lora_rank is not None:
            _refuse("kv_lora_rank", f"None for {self.family}", self.kv_lora_rank)
        if self.head_dim is None:
            _refuse("head_dim", f"an integer for {self.family}", None)
        if heads % kv_heads:
            _refuse("num_key_value_heads", f"a divisor of num_attention_heads = {heads}", kv_heads)
        if (self.layer_types is None) != (self.sliding_window is None):
            _refuse("sliding_window", "layer_types and sliding_window both or neither", self.sliding_window)
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            _refuse("layer_types", f"num_hidden_layers = {self.num_hidden_layers} entries", len(self.layer_types))

    @property
    def family(self) -> str:
        """The HF model_type whose architecture this is: kimi_k2 -> deepseek_v3."""
        return FAMILY_OF_MODEL_TYPE[self.model_type]

    @property
    def model_layer_of_layer(self) -> list[int]:
        """[L]: the model's layer of each MoE layer."""
        return [
            layer
            for layer in range(self.first_k_dense_replace, self.num_hidden_layers)
            if layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
        ]

    @property
    def architecture(self) -> dict[str, Any]:
        """The fields that decide what is computed, under `family` instead of model_type.

        Fields at their default are left out, so that a field added later changes no old fingerprint.
        """
        fields = self.model_dump(mode="json", exclude=NOT_ARCHITECTURE, exclude_defaults=True)
        return {"family": self.family, **fields}

    @property
    def fingerprint(self) -> str:
        """16 hex digits of sha256 over `architecture` as canonical JSON; plans carry it.

        Releases of one architecture share it, whatever their quantisation, context length or
        weights: Kimi-K2.5 = K2.6, DeepSeek-V3 = R1. Which weights routed is the trace's to say.
        """
        text = json.dumps(self.architecture, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
