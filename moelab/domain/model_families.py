"""Model families: which tensors each has, and what its config may leave out.  Floor 0.

The rows were read in transformers 5.23 `modeling_<model_type>.py` and `configuration_<model_type>.py`
and are tested against its parameter counts. A new family is one row of `FAMILIES` and one preset.
It does not read configs (`model_config.py`) or count (`model_tensors.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """Which tensors a family has, and HF's defaults for fields that change no size.

    `defaults` are what transformers assumes when a config leaves such a field out; a size that is
    left out is refused.

    `attention`: "mla" (latent), "gqa" (grouped or multi-head), None (not counted here).
    `qk_norm`: None, or one weight per value of a "head", or of the "full" projection.
    `router_bias`: "correction" (a float32 buffer for the choice only), "linear", or None.
    `expert_size_field`: where the config keeps the intermediate size of one expert.
    """

    attention: str | None
    expert_size_field: str = "moe_intermediate_size"
    has_first_k_dense: bool = False
    has_shared_experts: bool = False
    has_indexer: bool = False
    qk_norm: str | None = None
    qk_norm_is_optional: bool = False
    output_bias: bool = True  # does `attention_bias` reach o_proj too
    sinks: bool = False
    router_bias: str | None = None
    expert_bias: bool = False
    default_head_dim: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    why_inexact: str | None = None


_SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True}
_SOFTMAX = {"scoring_func": "softmax", "topk_method": "greedy"}
_V3 = {**_SIGMOID, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4}
_GLM_DSA = {**_SIGMOID, "routed_scaling_factor": 2.5}
_DEEPSEEK: dict[str, Any] = {"attention": "mla", "has_first_k_dense": True, "has_shared_experts": True}

FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(**_DEEPSEEK, defaults=_SOFTMAX),
    "deepseek_v3": Family(**_DEEPSEEK, router_bias="correction", defaults=_V3),
    "deepseek_v32": Family(**_DEEPSEEK, router_bias="correction", has_indexer=True, defaults=_V3),
    "glm_moe_dsa": Family(**_DEEPSEEK, router_bias="correction", has_indexer=True, defaults=_GLM_DSA),
    "glm4_moe": Family(
        "gqa",
        has_first_k_dense=True,
        has_shared_experts=True,
        qk_norm="head",
        qk_norm_is_optional=True,
        output_bias=False,
        router_bias="correction",
        defaults=_SIGMOID,
    ),
    "qwen3_moe": Family("gqa", qk_norm="head", defaults=_SOFTMAX),
    "gpt_oss": Family(
        "gqa",
        expert_size_field="intermediate_size",
        sinks=True,
        router_bias="linear",
        expert_bias=True,
        default_head_dim=64,
        defaults={
            "scoring_func": "softmax_over_topk",
            "topk_method": "greedy",
            "norm_topk_prob": True,
            "attention_bias": True,
            "swiglu_limit": 7.0,
        },
    ),
    "minimax_m2": Family(
        "gqa",
        expert_size_field="intermediate_size",
        qk_norm="full",
        router_bias="correction",
        default_head_dim=128,
        defaults=_SIGMOID,
    ),
    "mixtral": Family("gqa", expert_size_field="intermediate_size", defaults={**_SOFTMAX, "norm_topk_prob": True}),
    "olmoe": Family("gqa", expert_size_field="intermediate_size", qk_norm="full", defaults=_SOFTMAX),
    "deepseek_v4": Family(
        None,
        has_shared_experts=True,
        defaults={**_SIGMOID, "scoring_func": "sqrtsoftplus", "routed_scaling_factor": 1.5},
        why_inexact="compressed attention, hyper-connections and hash routers are not counted here",
    ),
    "kimi_linear": Family(
        None,
        has_first_k_dense=True,
        has_shared_experts=True,
        defaults={**_SIGMOID, "routed_scaling_factor": 2.446},
        why_inexact="linear (KDA) layers, attention residuals and latent projections are not counted here",
    ),
}

# model_type of a config -> family; the rest name themselves.
FAMILY_OF_MODEL_TYPE: dict[str, str] = {
    **{family: family for family in FAMILIES},
    "kimi_k2": "deepseek_v3",
    "kimi_k25": "deepseek_v3",
    "kimi_k3": "kimi_linear",
}

# Other names of a field. All names given must agree.
ALIASES: dict[str, tuple[str, ...]] = {
    "n_routed_experts": ("num_experts", "num_local_experts"),
    "num_experts_per_tok": ("num_experts_per_token", "experts_per_token"),
    "n_shared_experts": ("num_shared_experts",),
    "n_group": ("num_expert_group",),
    "norm_topk_prob": ("moe_renormalize",),
    "scoring_func": ("moe_router_activation_func",),
    "max_position_embeddings": ("model_max_length",),
    "num_nextn_predict_layers": ("num_mtp_layers", "num_mtp_modules"),
}
