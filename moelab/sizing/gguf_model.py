"""From a GGUF header to the parts of a model: parameters and bytes as they lie in the file.  Floor 2.

The parts follow llama.cpp's tensor names, which are one scheme for all architectures. For architectures whose keys
are known here (`deepseek2`: DeepSeek V2, V3, Kimi K2; `qwen3moe`) the header also gives a `ModelSpec`, and both must
agree to the parameter: a header that contradicts its own tensors is refused by name.

It does not know vision towers (another file) and counts layers beyond the model (MTP) apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from moelab.domain.model import ModelSpec
from moelab.domain.model_tensors import PARTS
from moelab.formats.gguf_header import GgufHeader, GgufTensor, read_header
from moelab.sizing.recipes import Recipe

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_PART_OF_PATTERN = (
    (r"token_embd\.", "embedding"),
    (r"output\.", "lm_head"),
    (r"output_norm|.*\battn_norm|.*\bffn_norm|.*\bpost_attention_norm", "norms"),
    (r".*ffn_(gate|up|down|gate_up)_exps", "routed_experts"),
    (r".*ffn_(gate|up|down)_shexp", "shared_experts"),
    (r".*(ffn_gate_inp|exp_probs_b)", "router"),
    (r".*indexer", "indexer"),
    (r".*attn_", "attention"),
    (r".*ffn_(gate|up|down)\.", "dense_mlp"),
)
_FREQUENCIES = re.compile(r"rope_freqs|.*rope_factors")  # computed tables, no parameters


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file holds. Sizes in bytes, exact; `mtp_params` lie in layers beyond the model."""

    header: GgufHeader
    params_of_part: dict[str, int]
    bytes_of_part: dict[str, int]
    mtp_params: int

    @property
    def total_params(self) -> int:
        return sum(self.params_of_part.values())

    @property
    def num_experts(self) -> int:
        return int(self.header.value(f"{self.header.architecture}.expert_count"))

    @property
    def top_k(self) -> int:
        return int(self.header.value(f"{self.header.architecture}.expert_used_count"))

    @property
    def active_params(self) -> int:
        """Parameters that one token uses, without the embedding table (as `ModelSpec.active_params`)."""
        parts = self.params_of_part
        routed, embedding = parts.get("routed_experts", 0), parts["embedding"]
        tied = "lm_head" not in parts
        return self.total_params - routed - (0 if tied else embedding) + routed * self.top_k // self.num_experts

    def spec(self) -> ModelSpec:
        """The architecture, checked against the tensors. ValueError by key or part where they disagree."""
        spec = ModelSpec.from_hf_config(_hf_config(self.header, self.params_of_part), name=self.header.path.stem)
        for part, params in spec.params_of_part.items():
            if self.params_of_part.get(part, 0) != params:
                raise ValueError(
                    f"{self.header.path.name}: {part}: expected {params} parameters from the header's sizes, got "
                    f"{self.params_of_part.get(part, 0)} in its tensors; use the file's own totals or its config.json"
                )
        return spec

    def recipe(self) -> Recipe:
        """The file's own mixture, as a recipe for `size`."""
        return Recipe(self.header.path.name, lambda spec: dict(self.bytes_of_part), True, "tensor list of the file")


def read_gguf(path: str) -> GgufModel:
    """Parts of a GGUF file (or of a split model, by its first file)."""
    header = read_header(path)
    num_layers = int(header.value(f"{header.architecture}.block_count"))
    num_layers -= int(header.own("nextn_predict_layers", 0) or 0)
    params: dict[str, int] = {}
    sizes: dict[str, int] = {}
    mtp = 0
    for tensor in header.tensors:
        block = _BLOCK.match(tensor.name)
        if block and int(block[1]) >= num_layers:
            mtp += tensor.params
            continue
        if _FREQUENCIES.match(tensor.name):
            continue
        part = _part_of(tensor, header)
        params[part] = params.get(part, 0) + tensor.params
        sizes[part] = sizes.get(part, 0) + tensor.num_bytes
    if "embedding" not in params:
        raise ValueError(f"{header.path.name}: expected token_embd.weight, got no such tensor; is this a text model?")
    order = [part for part in PARTS if part in params]
    return GgufModel(header, {part: params[part] for part in order}, {part: sizes[part] for part in order}, mtp)


def _part_of(tensor: GgufTensor, header: GgufHeader) -> str:
    for pattern, part in _PART_OF_PATTERN:
        if re.match(pattern, tensor.name):
            return part
    raise ValueError(
        f"{header.path.name}: tensor {tensor.name}: expected a name of llama.cpp's scheme; its part is not known here"
    )


def _hf_config(header: GgufHeader, params_of_part: dict[str, int]) -> dict[str, object]:
    """The header's sizes under HF's names."""
    architecture = header.architecture
    if architecture not in ("deepseek2", "qwen3moe"):
        raise ValueError(
            f"{header.path.name}: general.architecture: expected deepseek2 or qwen3moe for the cache and the speed, "
            f"got {architecture!r}; `read_gguf` gives its totals, the model's config.json the rest"
        )

    def need(key: str) -> int:
        return int(header.value(f"{architecture}.{key}"))

    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    config: dict[str, object] = {
        "hidden_size": need("embedding_length"),
        "num_hidden_layers": need("block_count") - int(header.own("nextn_predict_layers", 0) or 0),
        "num_attention_heads": need("attention.head_count"),
        "vocab_size": embedding.shape[1],
        "n_routed_experts": need("expert_count"),
        "num_experts_per_tok": need("expert_used_count"),
        "moe_intermediate_size": need("expert_feed_forward_length"),
        "max_position_embeddings": need("context_length"),
        "tie_word_embeddings": "lm_head" not in params_of_part,
    }
    if architecture == "qwen3moe":
        return config | {
            "model_type": "qwen3_moe",
            "num_key_value_heads": need("attention.head_count_kv"),
            "head_dim": need("attention.key_length"),
            "norm_topk_prob": True,
        }
    # Converters before 2025-04 wrote the expanded sizes as key_length; later ones have _mla keys beside the latent's.
    rope = need("rope.dimension_count")
    key = int(header.own("attention.key_length_mla", 0) or 0) or need("attention.key_length")
    value = int(header.own("attention.value_length_mla", 0) or 0) or need("attention.value_length")
    sigmoid = int(header.own("expert_gating_func", 0) or 0) == 2
    return config | {
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        "first_k_dense_replace": need("leading_dense_block_count"),
        "intermediate_size": need("feed_forward_length"),
        "n_shared_experts": need("expert_shared_count"),
        "q_lora_rank": header.own("attention.q_lora_rank"),
        "kv_lora_rank": need("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
        "n_group": int(header.own("expert_group_count", 1) or 1),
        "topk_group": int(header.own("expert_group_used_count", 1) or 1),
        "routed_scaling_factor": float(header.own("expert_weights_scale", 1.0) or 1.0),
    }
