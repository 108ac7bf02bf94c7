"""Fields of small configs of several families, as Hugging Face names them, for the tests of ModelSpec."""

from moelab.domain.model import ModelSpec

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "vocab_size": 101,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
}
SMALL_MLA = SMALL | {
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "intermediate_size": 70,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 9,
}
SIZES_MLA = tuple(SMALL_MLA)
SMALL_MLA |= {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5}
SMALL_DSA = SMALL_MLA | {"index_n_heads": 2, "index_head_dim": 12, "index_topk": 4}
SMALL_GQA = SMALL | {"num_key_value_heads": 2}
SMALL_GLM = SMALL_GQA | {"n_shared_experts": 1, "first_k_dense_replace": 1, "intermediate_size": 70}


def small_spec(model_type: str, fields: dict) -> ModelSpec:
    return ModelSpec.from_hf_config(fields | {"model_type": model_type}, name="small")
