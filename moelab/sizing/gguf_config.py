"""From a GGUF header's keys to the fields of an HF config, one row an architecture.  Floor 2.

Keys and names are llama.cpp's (`conversion/*.py`, `gguf-py/gguf/constants.py` of ggml-org/llama.cpp, read 2026-11-26).
What a header does not say is taken from its tensors: biases, norms of queries and keys, tied embeddings, and the
size of an expert where no key gives it. `GgufModel.spec` then checks every part to the parameter, so that a wrong
reading here is refused there.

It does not know rope, norm epsilons, or hybrid attention (kimi-linear, kimi-k3, deepseek4): those are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable

from moelab.formats.gguf_header import GgufHeader

Config = dict[str, object]


class _Keys:
    """Integer keys of the header's own architecture."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.names = {tensor.name for tensor in header.tensors}

    def need(self, key: str) -> int:
        return self._whole(key, self.header.value(f"{self.header.architecture}.{key}"))

    def own(self, key: str, default: int | None = None) -> int | None:
        found = self.header.own(key)
        return default if found is None else self._whole(key, found)

    def has(self, suffix: str) -> bool:
        """Does any block have such a tensor."""
        return any(name.endswith(suffix) for name in self.names)

    def _whole(self, key: str, found: object) -> int:
        if isinstance(found, list) and len(set(map(repr, found))) == 1:
            found = found[0]
        if not isinstance(found, int):
            raise ValueError(
                f"{self.header.path.name}: {self.header.architecture}.{key}: expected one whole number for all layers, "
                f"got {found!r:.60}; use the model's config.json"
            )
        return int(found)

    @property
    def num_layers(self) -> int:
        return self.need("block_count") - (self.own("nextn_predict_layers") or 0)

    def expert_size(self) -> int:
        """Rows of gate_proj of one expert: the key where there is one, else the tensor's (OLMoE, Mixtral)."""
        stated = self.own("expert_feed_forward_length")
        if stated is not None:
            return stated
        shapes = [one.shape for one in self.header.tensors if one.name.endswith("ffn_down_exps.weight")]
        if not shapes:
            raise ValueError(
                f"{self.header.path.name}: expected ffn_down_exps tensors, got none; experts in one tensor each are of "
                "files before 2024-04: convert the model again"
            )
        return shapes[0][0]


def _every(keys: _Keys, model_type: str) -> Config:
    embedding = next(tensor for tensor in keys.header.tensors if tensor.name == "token_embd.weight")
    return {
        "model_type": model_type,
        "hidden_size": keys.need("embedding_length"),
        "num_hidden_layers": keys.num_layers,
        "num_attention_heads": keys.need("attention.head_count"),
        "vocab_size": embedding.shape[1],
        "n_routed_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "moe_intermediate_size": keys.expert_size(),
        "max_position_embeddings": keys.need("context_length"),
        "tie_word_embeddings": "output.weight" not in keys.names,
        "routed_scaling_factor": float(keys.header.own("expert_weights_scale", 1.0) or 1.0),
    }


def _dense_and_shared(keys: _Keys) -> Config:
    return {
        "first_k_dense_replace": keys.need("leading_dense_block_count"),
        "intermediate_size": keys.need("feed_forward_length"),
        "n_shared_experts": keys.need("expert_shared_count"),
        "n_group": keys.own("expert_group_count", 1) or 1,
        "topk_group": keys.own("expert_group_used_count", 1) or 1,
    }


def _grouped(keys: _Keys, model_type: str) -> Config:
    heads, hidden = keys.need("attention.head_count"), keys.need("embedding_length")
    return _every(keys, model_type) | {
        "num_key_value_heads": keys.need("attention.head_count_kv"),
        "head_dim": keys.own("attention.key_length", hidden // heads),
        "attention_bias": keys.has("attn_q.bias"),
    }


def _latent(keys: _Keys, model_type: str) -> Config:
    """Converters before 2025-04 wrote the expanded sizes as key_length; later ones have _mla keys beside them."""
    rope = keys.need("rope.dimension_count")
    key = keys.own("attention.key_length_mla") or keys.need("attention.key_length")
    value = keys.own("attention.value_length_mla") or keys.need("attention.value_length")
    sizes: Config = {
        "q_lora_rank": keys.own("attention.q_lora_rank"),
        "kv_lora_rank": keys.need("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
    }
    return _every(keys, model_type) | _dense_and_shared(keys) | sizes


def _deepseek2(keys: _Keys) -> Config:
    """DeepSeek V2, V3, Kimi K2 and what else has their tensors: the gating function tells them apart."""
    return _latent(keys, "deepseek_v3" if keys.own("expert_gating_func") == 2 else "deepseek_v2")


def _sparse(model_type: str) -> Callable[[_Keys], Config]:
    """Latent attention with a DSA indexer; `indexer.types` says which layers have their own, all where it is absent."""

    def config(keys: _Keys) -> Config:
        own = keys.header.own("attention.indexer.types")
        kinds = [bool(one) for one in own] if isinstance(own, list) else [True] * keys.num_layers
        return _latent(keys, model_type) | {
            "index_n_heads": keys.need("attention.indexer.head_count"),
            "index_head_dim": keys.need("attention.indexer.key_length"),
            "index_topk": keys.need("attention.indexer.top_k"),
            "indexer_types": ["full" if one else "shared" for one in kinds[: keys.num_layers]],
        }

    return config


def _glm4moe(keys: _Keys) -> Config:
    return _grouped(keys, "glm4_moe") | _dense_and_shared(keys) | {"use_qk_norm": keys.has("attn_q_norm.weight")}


def _qwen3moe(keys: _Keys) -> Config:
    return _grouped(keys, "qwen3_moe") | {"norm_topk_prob": True}


def _gpt_oss(keys: _Keys) -> Config:
    """Sliding and full attention alternate, the first slides; the key gives the window."""
    config = _grouped(keys, "gpt_oss") | {"sliding_window": keys.need("attention.sliding_window")}
    return config | {"intermediate_size": config.pop("moe_intermediate_size")}


def _minimax_m2(keys: _Keys) -> Config:
    config = _grouped(keys, "minimax_m2") | {"use_routing_bias": keys.has("exp_probs_b.bias")}
    return config | {"intermediate_size": config.pop("moe_intermediate_size"), "use_qk_norm": True}


def _olmoe(keys: _Keys) -> Config:
    config = _grouped(keys, "olmoe")
    return config | {"intermediate_size": config.pop("moe_intermediate_size")}


def _mixtral(keys: _Keys) -> Config:
    """`llama` with experts; a dense model is refused for its missing key."""
    config = _grouped(keys, "mixtral")
    return config | {"intermediate_size": config.pop("moe_intermediate_size")}


ARCHITECTURES: dict[str, Callable[[_Keys], Config]] = {
    "deepseek2": _deepseek2,
    "deepseek32": _sparse("deepseek_v32"),
    "glm-dsa": _sparse("glm_moe_dsa"),
    "glm4moe": _glm4moe,
    "gpt-oss": _gpt_oss,
    "llama": _mixtral,
    "minimax-m2": _minimax_m2,
    "olmoe": _olmoe,
    "qwen3moe": _qwen3moe,
}


def hf_config(header: GgufHeader) -> Config:
    """The header's sizes under HF's names. ValueError names the architecture or the key that is not known."""
    if header.architecture not in ARCHITECTURES:
        raise ValueError(
            f"{header.path.name}: general.architecture: expected one of {', '.join(ARCHITECTURES)} for the cache and "
            f"the speed, got {header.architecture!r}; `read_gguf` gives its totals, the model's config.json the rest"
        )
    return ARCHITECTURES[header.architecture](_Keys(header))
