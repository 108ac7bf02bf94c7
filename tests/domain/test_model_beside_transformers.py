"""ModelSpec counts what transformers itself makes of a config: parameters of each part, caches, experts."""

import pytest

from moelab.domain.model import ModelSpec, presets
from moelab.domain.model_families import FAMILIES
from tests.domain.small_configs import SMALL_DSA, SMALL_GLM, SMALL_GQA, SMALL_MLA, small_spec

EXACT = [name for name in presets() if ModelSpec.preset(name).sizes_exact]


def hf_config(spec: ModelSpec):
    """transformers' config of a spec, or a visible skip without transformers."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = spec.model_dump(exclude={"name", "model_type", "source", "verified", "notes", "sizes_exact"})
    fields = {field: value for field, value in fields.items() if value is not None}
    fields = {field: list(value) if isinstance(value, tuple) else value for field, value in fields.items()}
    experts, inner = fields.pop("n_routed_experts"), fields.pop("moe_intermediate_size")
    for field in ("quant_format", "quantized_parts", "scoring_func", "topk_method", "use_routing_bias"):
        fields.pop(field, None)
    family = FAMILIES[spec.family]
    if family.attention == "mla":
        fields |= {"n_routed_experts": experts, "moe_intermediate_size": inner, "q_lora_rank": spec.q_lora_rank}
    elif spec.family == "glm4_moe":
        fields |= {"n_routed_experts": experts, "moe_intermediate_size": inner}
    else:
        fields[{"olmoe": "num_experts", "qwen3_moe": "num_experts"}.get(spec.family, "num_local_experts")] = experts
        fields[family.expert_size_field] = inner
    if spec.family == "qwen3_moe":
        fields["use_sliding_window"] = spec.sliding_window is not None
    if spec.family != "gpt_oss":
        fields.pop("layer_types", None)
    fields.setdefault("pad_token_id", None)
    return CONFIG_MAPPING[spec.family](**fields)


def part_of(name: str) -> str:
    """The part of a parameter by its name in transformers."""
    marks = (
        ("shared_experts", "shared_experts"),
        ("mlp.gate.", "router"),
        ("mlp.router.", "router"),
        ("e_score_correction_bias", "router"),
        ("mlp.experts.", "routed_experts"),
        (".indexer.", "indexer"),
        ("self_attn", "attention"),
        ("layernorm", "norms"),
        ("model.norm.", "norms"),
        ("embed_tokens", "embedding"),
        ("lm_head", "lm_head"),
        ("mlp.", "dense_mlp"),
    )
    return next(part for mark, part in marks if mark in name)


def meta_params_of_part(config) -> dict[str, int]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counts: dict[str, int] = {}
    biases = [(name, buffer) for name, buffer in model.named_buffers() if "e_score_correction_bias" in name]
    for name, tensor in [*model.named_parameters(), *biases]:
        part = part_of(name)
        counts[part] = counts.get(part, 0) + tensor.numel()
    return counts


@pytest.mark.parametrize("name", EXACT)
def test_presets_equal_transformers_to_the_parameter(name):
    spec = ModelSpec.preset(name)
    assert spec.params_of_part == meta_params_of_part(hf_config(spec))


VARIANTS = [
    ("deepseek_v3", SMALL_MLA | {"q_lora_rank": None, "first_k_dense_replace": 0}),
    ("deepseek_v3", SMALL_MLA | {"attention_bias": True, "n_shared_experts": 3, "first_k_dense_replace": 3}),
    ("deepseek_v3", SMALL_MLA | {"tie_word_embeddings": True, "n_group": 4, "topk_group": 2}),
    ("kimi_k2", SMALL_MLA),
    ("deepseek_v2", SMALL_MLA | {"q_lora_rank": 24, "attention_bias": True, "n_shared_experts": 2}),
    ("deepseek_v2", SMALL_MLA | {"q_lora_rank": None, "first_k_dense_replace": 0}),
    ("deepseek_v32", SMALL_DSA | {"attention_bias": True}),
    ("glm_moe_dsa", SMALL_DSA | {"index_topk_freq": 2, "index_skip_topk_offset": 2}),
    ("glm_moe_dsa", SMALL_DSA | {"index_topk_pattern": "FSSFS", "first_k_dense_replace": 2}),
    ("glm4_moe", SMALL_GLM | {"attention_bias": True, "use_qk_norm": True, "head_dim": 16}),
    ("glm4_moe", SMALL_GLM | {"attention_bias": False, "use_qk_norm": False, "first_k_dense_replace": 0}),
    ("qwen3_moe", SMALL_GQA | {"attention_bias": True, "head_dim": 16}),
    ("qwen3_moe", SMALL_GQA | {"decoder_sparse_step": 2, "intermediate_size": 70}),
    ("qwen3_moe", SMALL_GQA | {"mlp_only_layers": [0, 3], "intermediate_size": 70, "tie_word_embeddings": True}),
    ("gpt_oss", SMALL_GQA | {"sliding_window": 8, "head_dim": 16}),
    ("gpt_oss", SMALL_GQA | {"sliding_window": 8, "attention_bias": False}),
    ("minimax_m2", SMALL_GQA | {"head_dim": 16}),
    ("mixtral", SMALL_GQA | {"tie_word_embeddings": True}),
    ("mixtral", SMALL_GQA | {"sliding_window": 8, "head_dim": 16}),
    ("olmoe", SMALL_GQA | {"attention_bias": True}),
]


@pytest.mark.parametrize(("model_type", "fields"), VARIANTS)
def test_variants_equal_transformers_and_survive_its_config_file(model_type, fields, tmp_path):
    spec = small_spec(model_type, fields)
    config = hf_config(spec)
    counts = meta_params_of_part(config)
    assert spec.params_of_part == counts
    assert spec.total_params == sum(counts.values())
    config.save_pretrained(tmp_path / "small")
    again = ModelSpec.from_hf_config(tmp_path / "small")
    assert again.architecture == spec.architecture
    assert again.name == "small"
    # A path of the machine that wrote the config must not get into plans as a model's name.
    assert ModelSpec.from_hf_config(fields | {"model_type": model_type, "_name_or_path": "/a/b/tiny/"}).name == "tiny"


CACHED = [VARIANTS[at] for at in (0, 6, 8, 11, 14, 18)]


@pytest.mark.parametrize(("model_type", "fields"), CACHED)
def test_cache_equals_what_transformers_holds(model_type, fields):
    spec = small_spec(model_type, fields)
    config = hf_config(spec)
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    context, batch = 13, 2
    with torch.no_grad():
        cache = model(torch.arange(context).repeat(batch, 1), use_cache=True).past_key_values
    held = 0
    for layer in cache.layers:
        tensors = [layer.keys, layer.values]
        if getattr(layer, "indexer_keys", None) is not None:
            tensors.append(layer.indexer_keys)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if layer.keys.shape[-2] < context:
            # transformers keeps window - 1 tokens between steps; the step that runs adds its own
            size = size * spec.sliding_window // (spec.sliding_window - 1)
        held += size
    assert spec.kv_cache_bytes(context, batch, "float32", indexer_format="float32") == held


def test_experts_of_deepseek_v4_equal_transformers():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import DeepseekV4Config

    spec = ModelSpec.preset("deepseek-v4-flash")
    config = DeepseekV4Config(
        hidden_size=spec.hidden_size,
        moe_intermediate_size=spec.moe_intermediate_size,
        n_routed_experts=spec.n_routed_experts,
        num_experts_per_tok=spec.num_experts_per_tok,
        num_hidden_layers=4,
    )
    experts = meta_expert_params(config)
    assert experts == 4 * spec.n_routed_experts * spec.expert_params


def meta_expert_params(config) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(tensor.numel() for name, tensor in model.named_parameters() if ".experts." in name)
