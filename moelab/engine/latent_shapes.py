"""Names and shapes of the tensors of a model with latent attention, without its routed experts.

DeepSeek-V3 technical report (2024), section 2.1. It does not know files or torch. Floor 2.
"""

from __future__ import annotations

from moelab.domain.model import ModelSpec


def dense_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that is not a routed expert, by canonical name."""
    hidden, heads = spec.hidden_size, spec.num_attention_heads
    nope, rope, v_dim, kv_rank = head_sizes(spec)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    for layer in range(spec.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        attention = {
            "kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
            "kv_a_layernorm.weight": (kv_rank,),
            "kv_b_proj.weight": (heads * (nope + v_dim), kv_rank),
            "o_proj.weight": (hidden, heads * v_dim),
        }
        if spec.q_lora_rank is None:
            attention["q_proj.weight"] = (heads * (nope + rope), hidden)
        else:
            attention["q_a_proj.weight"] = (spec.q_lora_rank, hidden)
            attention["q_a_layernorm.weight"] = (spec.q_lora_rank,)
            attention["q_b_proj.weight"] = (heads * (nope + rope), spec.q_lora_rank)
        if spec.attention_bias:
            attention["kv_a_proj_with_mqa.bias"] = (kv_rank + rope,)
            attention["o_proj.bias"] = (hidden,)
            if spec.q_lora_rank is not None:
                attention["q_a_proj.bias"] = (spec.q_lora_rank,)
        shapes |= {f"{prefix}self_attn.{name}": shape for name, shape in attention.items()}
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
        if layer in spec.model_layer_of_layer:
            shapes[f"{prefix}mlp.gate.weight"] = (spec.n_routed_experts, hidden)
            shapes[f"{prefix}mlp.gate.e_score_correction_bias"] = (spec.n_routed_experts,)
            size, mlp = spec.moe_intermediate_size * spec.n_shared_experts, f"{prefix}mlp.shared_experts."
        else:
            size, mlp = spec.intermediate_size or 0, f"{prefix}mlp."
        if size:
            shapes |= {f"{mlp}{name}_proj.weight": (size, hidden) for name in ("gate", "up")}
            shapes[f"{mlp}down_proj.weight"] = (hidden, size)
    return shapes


def head_sizes(spec: ModelSpec) -> tuple[int, int, int, int]:
    """(qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank): ModelSpec has all four for this family."""
    sizes = (spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.v_head_dim, spec.kv_lora_rank)
    nope, rope, v_dim, kv_rank = (size or 0 for size in sizes)
    return nope, rope, v_dim, kv_rank
