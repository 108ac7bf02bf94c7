"""Tiny random models of many MoE families of transformers, and what each router chooses, in float64 NumPy.

Written from the papers and the families' configurations, not from moelab: `Choice` says how a family scores.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)

COMMON = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "num_experts_per_tok": 3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
MLA = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "v_head_dim": 12, "qk_nope_head_dim": 10,
       "num_key_value_heads": 4}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How to build a tiny model of the family, and how its router chooses and weighs."""

    model_type: str
    num_experts: int
    config: dict[str, Any]
    kind: str
    score: str = "softmax"
    normalised: bool = True
    scale: float = 1.0
    biased: bool = False
    groups: tuple[int, int] = (1, 1)
    top_k: int = 3
    layers: tuple[int, ...] = (0, 1, 2, 3)
    router: str = "gate"

    def build(self, seed=0):
        fields = COMMON | self.config
        config = AutoConfig.for_model(self.model_type, **fields)
        config._attn_implementation = "eager"
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
                if "correction_bias" in name or name.endswith("expert_bias"):
                    tensor.uniform_(-0.2, 0.2)
                elif tensor.ndim == 1 and "norm" in name:
                    tensor.uniform_(0.5, 1.5)
                elif any(f".{word}." in name for word in ("gate", "router", "wg", "classifier")):
                    tensor.normal_(0, 0.4)
        return model


def reference(family, logits, bias):
    """(ids [T, K] in rank order, weights [T, K], relative distance of the K-th from the next choice [T])."""
    logits = logits.astype(np.float64)
    if family.score == "softmax":
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
    choice = scores + (bias.astype(np.float64) if family.biased else 0)
    num_groups, kept = family.groups
    if num_groups > 1:
        grouped = choice.reshape(len(choice), num_groups, -1)
        of_group = np.sort(grouped, -1)[:, :, -2:].sum(-1) if family.biased else grouped.max(-1)
        lost = np.argsort(-of_group, -1, kind="stable")[:, kept:]
        for token, groups in enumerate(lost):
            grouped[token, groups] = -np.inf
        choice = grouped.reshape(choice.shape)
    order = np.argsort(-choice, -1, kind="stable")
    ids = order[:, : family.top_k]
    ranked = np.take_along_axis(choice, order, -1)
    weights = np.take_along_axis(scores, ids, -1)
    if family.normalised:
        weights = weights / weights.sum(-1, keepdims=True)
    last, following = ranked[:, family.top_k - 1], ranked[:, family.top_k]
    return ids, weights * family.scale, (last - following) / np.abs(last)


GROUPED = {"n_routed_experts": 12, "n_shared_experts": 1, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
           "routed_scaling_factor": 1.7, "norm_topk_prob": True}  # fmt: skip
NORMALISED, OVER_ALL, SCALED = "softmax_over_selected", "softmax_over_all", "normalised_scaled"

FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen3_moe", 12, {"num_experts": 12, "norm_topk_prob": True}, NORMALISED),
        Family("qwen2_moe", 12, {"num_experts": 12, "norm_topk_prob": False, "shared_expert_intermediate_size": 16},
               OVER_ALL, normalised=False),
        Family("qwen3_next", 12, {
            "num_experts": 12, "norm_topk_prob": True, "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        }, NORMALISED),
        Family("olmoe", 12, {"num_experts": 12, "norm_topk_prob": False}, OVER_ALL, normalised=False),
        Family("mixtral", 8, {"num_local_experts": 8}, NORMALISED),
        Family("gpt_oss", 12, {"num_local_experts": 12}, NORMALISED, router="router"),
        Family("deepseek_v2", 12, MLA | GROUPED | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.0},
               OVER_ALL, normalised=False, groups=(4, 2), layers=(1, 2, 3)),
        Family("deepseek_v3", 12, MLA | GROUPED, SCALED, "sigmoid", scale=1.7, biased=True, groups=(4, 2),
               layers=(1, 2, 3)),
        Family("glm4_moe", 12, GROUPED, SCALED, "sigmoid", scale=1.7, biased=True, groups=(4, 2), layers=(1, 2, 3)),
        Family("glm4_moe_lite", 12, MLA | GROUPED | {"mlp_layer_types": ["dense"] + ["sparse"] * 3}, SCALED, "sigmoid",
               scale=1.7, biased=True, groups=(4, 2), layers=(1, 2, 3)),
        Family("dots1", 12, GROUPED, SCALED, "sigmoid", scale=1.7, biased=True, groups=(4, 2), layers=(1, 2, 3)),
        Family("minimax_m2", 12, {"num_local_experts": 12}, "normalised", "sigmoid", biased=True),
        Family("ernie4_5_moe", 12, {"moe_num_experts": 12, "moe_k": 3, "moe_layer_start_index": 1}, NORMALISED,
               biased=True, layers=(1, 2, 3)),
        Family("lfm2_moe", 12, {"num_experts": 12, "num_dense_layers": 1, "layer_types": ["full_attention"] * 4,
                                "norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.0},
               "normalised", "sigmoid", biased=True, layers=(1, 2, 3)),
        Family("llama4_text", 12, {"num_local_experts": 12, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2,
                                   "num_experts_per_tok": 3}, "sigmoid", "sigmoid", normalised=False, layers=(1, 3),
               router="router"),
        Family("dbrx", 12, {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 256,
                            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
                            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 12, "moe_top_k": 3,
                                           "hidden_size": 32, "moe_normalize_expert_weights": 1.0}},
               NORMALISED, router="router"),
        Family("jamba", 12, {"num_experts": 12, "attn_layer_period": 2, "attn_layer_offset": 0,
                             "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8,
                             "mamba_dt_rank": 4, "use_mamba_kernels": False}, OVER_ALL, normalised=False,
               layers=(1, 3), router="router"),
        Family("hunyuan_v1_moe", 12, {"num_experts": 12, "moe_topk": [3] * 4}, NORMALISED),
        Family("granitemoe", 12, {"num_local_experts": 12}, NORMALISED, router="router"),
        Family("longcat_flash", 12, MLA | {
            "n_routed_experts": 12, "zero_expert_num": 4, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48,
            "moe_topk": 3, "num_layers": 4, "routed_scaling_factor": 1.7,
        }, "unknown", normalised=False, scale=1.7, biased=True, layers=(0, 1), router="router"),
        Family("afmoe", 12, {"num_experts": 12, "num_dense_layers": 1, "route_scale": 1.7, "num_shared_experts": 1,
                             "layer_types": ["full_attention"] * 4}, SCALED, "sigmoid", scale=1.7, biased=True,
               layers=(1, 2, 3), router="router"),
    )
}  # fmt: skip
