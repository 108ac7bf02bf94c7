"""ModelSpec: the table of facts/models_and_sizing.md, transformers' own counts, refusals by name."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.model import ModelSpec, presets
from moelab.domain.model_families import FAMILIES
from moelab.domain.model_tensors import PARTS, tensors_of

SHARED_MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
EXACT = [name for name in presets() if ModelSpec.preset(name).sizes_exact]
INEXACT = ["deepseek-v4-flash", "kimi-k3"]

# Section 1: preset, layers, first dense, hidden, dense ff, moe ff, E, K, shared, vocab, context, total in billions.
SECTION_1 = [
    ("kimi-k2-instruct", 61, 1, 7168, 18432, 2048, 384, 8, 1, 163840, 131072, 1026.408),
    ("kimi-k2-thinking", 61, 1, 7168, 18432, 2048, 384, 8, 1, 163840, 262144, 1026.408),
    ("kimi-k2.5", 61, 1, 7168, 18432, 2048, 384, 8, 1, 163840, 262144, 1026.408),
    ("kimi-k2.6", 61, 1, 7168, 18432, 2048, 384, 8, 1, 163840, 262144, 1026.408),
    ("deepseek-v3", 61, 3, 7168, 18432, 2048, 256, 8, 1, 129280, 163840, 671.026),
    ("deepseek-r1", 61, 3, 7168, 18432, 2048, 256, 8, 1, 129280, 163840, 671.026),
    ("deepseek-v3.2", 61, 3, 7168, 18432, 2048, 256, 8, 1, 129280, 163840, 671.878),
    ("deepseek-v2-lite", 27, 1, 2048, 10944, 1408, 64, 6, 2, 102400, 163840, 15.706),
    ("qwen3-235b-a22b", 94, 0, 4096, None, 1536, 128, 8, 0, 151936, 40960, 235.094),
    ("qwen3-30b-a3b", 48, 0, 2048, None, 768, 128, 8, 0, 151936, 40960, 30.532),
    ("glm-4.5", 92, 3, 5120, 12288, 1536, 160, 8, 1, 151552, 131072, 352.798),
    ("glm-4.6", 92, 3, 5120, 12288, 1536, 160, 8, 1, 151552, 202752, 352.798),
    ("glm-5", 78, 3, 6144, 12288, 2048, 256, 8, 1, 154880, 202752, 743.911),
    ("gpt-oss-120b", 36, 0, 2880, None, 2880, 128, 4, 0, 201088, 131072, 116.829),
    ("gpt-oss-20b", 24, 0, 2880, None, 2880, 32, 4, 0, 201088, 131072, 20.915),
    ("minimax-m2", 62, 0, 3072, None, 1536, 256, 8, 0, 200064, 196608, 228.690),
    ("minimax-m2.5", 62, 0, 3072, None, 1536, 256, 8, 0, 200064, 196608, 228.690),
    ("mixtral-8x7b", 32, 0, 4096, None, 14336, 8, 2, 0, 32000, 32768, 46.703),
    ("olmoe-1b-7b", 16, 0, 2048, None, 1024, 64, 8, 0, 50304, 4096, 6.919),
]

# Section 2: preset, active (no embedding), non-routed, routed active in billions; expert MB in bf16, Q8_0,
# int4 g32 and at the nominal 4.85 and 2.7 bits; cache bytes per token in bf16 (every layer seeing it);
# cache GB at 8K, 32K, 128K, 256K (None where the table has none).
K_EXPERT = (88.08, 46.79, 24.77, 26.70, 14.86)
# The facts print 26.45 and 14.00 for gpt-oss: bits times parameters, biases quantised too. They stay bf16.
OSS_EXPERT = (49.78, 26.46, 14.01, 15.09, 8.40)
SECTION_2 = [
    ("kimi-k2.6", 31.687, 11.722, 21.139, K_EXPERT, 70272, (0.576, 2.30, 9.21, 18.42)),
    ("deepseek-v3", 36.626, 17.118, 20.435, K_EXPERT, 70272, (0.576, 2.30, 9.21, 18.42)),
    ("deepseek-v2-lite", 2.451, 1.312, 1.350, (17.30, 9.19, 4.87, 5.24, 2.92), 31104, (0.255, 1.02, 4.08, None)),
    ("qwen3-235b-a22b", 21.568, 7.997, 14.194, (37.75, 20.05, 10.62, 11.44, 6.37), 192512, (1.58, 6.31, 25.2, None)),
    ("qwen3-30b-a3b", 3.042, 1.541, 1.812, (9.44, 5.01, 2.65, 2.86, 1.59), 98304, (0.81, 3.22, 12.9, None)),
    ("glm-4.6", 32.856, 16.834, 16.798, (47.19, 25.07, 13.27, 14.30, 7.96), 376832, (3.09, 12.3, 49.4, None)),
    ("glm-5", 40.833, 19.135, 22.649, (75.50, 40.11, 21.23, 22.89, 12.74), 89856, (0.74, 2.94, 11.8, None)),
    ("gpt-oss-120b", 5.133, 2.128, 3.584, OSS_EXPERT, 73728, (0.60, None, None, None)),
    ("gpt-oss-20b", 3.608, 1.798, 2.390, OSS_EXPERT, 49152, (0.40, None, None, None)),
    ("minimax-m2", 10.416, 4.009, 7.021, (28.31, 15.04, 7.96, 8.58, 4.78), 253952, (2.08, 8.32, 33.3, None)),
    ("mixtral-8x7b", 12.749, 1.606, 11.274, (352.3, 187.2, 99.1, 106.8, 59.5), 131072, (1.07, 4.29, None, None)),
    ("olmoe-1b-7b", 1.179, 0.477, 0.805, (12.58, 6.68, 3.54, 3.81, 2.12), 131072, (None, None, None, None)),
]


def rounds_to(value: float, printed: float) -> bool:
    """Does `value` round to what the table prints (its own digits, half a unit of the last, and a hair)."""
    text = str(printed)
    digits = len(text.partition(".")[2])
    return abs(value - printed) <= 0.5 * 10**-digits * 1.02


# --- facts ---


@pytest.mark.parametrize("row", SECTION_1, ids=lambda row: row[0])
def test_section_1(row):
    name, layers, dense, hidden, dense_ff, moe_ff, experts, top_k, shared, vocab, context, total = row
    spec = ModelSpec.preset(name)
    assert spec.num_hidden_layers == layers
    assert spec.model_layer_of_layer == list(range(dense, layers))
    assert spec.num_moe_layers == layers - dense
    assert (spec.hidden_size, spec.intermediate_size, spec.moe_intermediate_size) == (hidden, dense_ff, moe_ff)
    assert (spec.n_routed_experts, spec.num_experts_per_tok, spec.n_shared_experts) == (experts, top_k, shared)
    assert (spec.vocab_size, spec.max_position_embeddings) == (vocab, context)
    assert rounds_to(spec.total_params / 1e9, total)
    assert not spec.tie_word_embeddings


ROUTERS = {  # scoring, renormalised, scale, groups, bias
    "kimi-k2.6": ("sigmoid", True, 2.827, (1, 1), True),
    "deepseek-v3": ("sigmoid", True, 2.5, (8, 4), True),
    "deepseek-v3.2": ("sigmoid", True, 2.5, (8, 4), True),
    "deepseek-v2-lite": ("softmax", False, 1.0, (1, 1), False),
    "qwen3-235b-a22b": ("softmax", True, 1.0, (1, 1), False),
    "glm-4.6": ("sigmoid", True, 2.5, (1, 1), True),
    "glm-5": ("sigmoid", True, 2.5, (1, 1), True),
    "gpt-oss-120b": ("softmax_over_topk", True, 1.0, (1, 1), True),
    "minimax-m2": ("sigmoid", True, 1.0, (1, 1), True),
    "mixtral-8x7b": ("softmax", True, 1.0, (1, 1), False),
    "olmoe-1b-7b": ("softmax", False, 1.0, (1, 1), False),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_section_1_routers(name):
    spec = ModelSpec.preset(name)
    groups = (spec.n_group, spec.topk_group)
    got = (spec.scoring_func, spec.norm_topk_prob, spec.routed_scaling_factor, groups, spec.use_routing_bias)
    assert got == ROUTERS[name]


@pytest.mark.parametrize("row", SECTION_2, ids=lambda row: row[0])
def test_section_2(row):
    name, active, non_routed, routed_active, expert_mb, per_token, cache_gb = row
    spec = ModelSpec.preset(name)
    assert rounds_to(spec.active_params / 1e9, active)
    assert rounds_to(spec.non_routed_params / 1e9, non_routed)
    assert rounds_to(spec.routed_active_params / 1e9, routed_active)
    assert spec.active_params_with_embedding - spec.active_params == spec.vocab_size * spec.hidden_size
    sizes = [spec.expert_bytes(name) / 1e6 for name in ("bf16", "Q8_0", "int4_g32")]
    sizes += [spec.expert_params * bits / 8 / 1e6 for bits in (4.85, 2.7)]
    assert all(rounds_to(size, printed) for size, printed in zip(sizes, expert_mb, strict=True)), sizes
    cache = spec.memory(1, 1).bytes_of_part["kv_cache"]
    assert cache == per_token
    for context, printed in zip((8192, 32768, 131072, 262144), cache_gb, strict=True):
        # The table's last column is a ceiling for gpt-oss, so it is per_token * context for all.
        assert printed is None or rounds_to(per_token * context / 1e9, printed)
        if spec.layer_types is None:
            assert spec.memory(context, 1).bytes_of_part["kv_cache"] == per_token * context


def test_kimi_k26_sizes_of_section_2():
    spec = ModelSpec.preset("kimi-k2.6")
    assert spec.total_params == 1_026_408_232_448
    assert rounds_to(spec.weight_bytes("bf16") / 1e9, 2052.8)
    assert rounds_to(spec.weight_bytes("Q8_0") / 1e9, 1090.6)
    assert rounds_to(spec.weight_bytes() / 1e9, 594.2)
    rest = {part: "Q8_0" for part in PARTS if part != "routed_experts"}
    assert rounds_to(spec.weight_bytes(rest) / 1e9, 583.2)
    assert rounds_to(spec.kv_cache_bytes(262144, expanded=True) / 1e9, 655)
    assert rounds_to(ModelSpec.preset("deepseek-v3").kv_cache_bytes(262144, expanded=True) / 1e9, 1310)
    # unsloth PR#4757: 17.16 GiB at 256K; counting 61 MoE layers gives the report's 1.04 T
    assert rounds_to(spec.kv_cache_bytes(262144) / 2**30, 17.16)
    dense_to_moe = spec.n_routed_experts * spec.expert_params + spec.hidden_size * 384 + 384
    dense_to_moe += 3 * 7168 * 2048 - 3 * 7168 * 18432
    assert rounds_to((spec.total_params + dense_to_moe) / 1e9, 1042.97)


def test_published_checkpoint_sizes():
    """gpt-oss on disk: 60.8 and 12.8 GiB (model cards); the MXFP4 experts and the bf16 rest."""
    assert rounds_to(ModelSpec.preset("gpt-oss-120b").weight_bytes() / 2**30, 60.8)
    assert rounds_to(ModelSpec.preset("gpt-oss-20b").weight_bytes() / 2**30, 12.8)


def test_caches():
    oss = ModelSpec.preset("gpt-oss-120b")
    row = 2 * 8 * 64 * 2
    assert oss.kv_cache_bytes(8192, 3) == 3 * row * 18 * (8192 + 128)
    assert oss.kv_cache_bytes(100) == row * 36 * 100  # within the window nothing is saved
    glm = ModelSpec.preset("glm-5.2")
    assert glm.num_indexer_layers == 21
    assert glm.memory(1000, 2).bytes_of_part["indexer_keys"] == 2 * 21 * 1000 * 132
    kimi = ModelSpec.preset("kimi-k2.6")
    assert kimi.kv_cache_bytes(1000, format="Q8_0") == 61 * 1000 * 576 * 34 // 32
    assert kimi.kv_cache_bytes(0) == 0
    qwen = ModelSpec.preset("qwen3-30b-a3b")
    assert qwen.kv_cache_bytes(100, expanded=True) == qwen.kv_cache_bytes(100)


# --- transformers ---


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


def small_spec(model_type: str, fields: dict) -> ModelSpec:
    return ModelSpec.from_hf_config(fields | {"model_type": model_type}, name="small")


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


# --- presets and configs ---


def shared_configs() -> list[str]:
    return sorted(path.stem for path in SHARED_MODELS.glob("*.json") if path.stem != "validation_points")


@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="shared folder absent")
def test_every_shared_config_has_a_preset():
    assert shared_configs() == presets()


@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="shared folder absent")
@pytest.mark.parametrize("name", presets())
def test_preset_equals_the_shared_config(name):
    config = json.loads((SHARED_MODELS / f"{name}.json").read_text())
    verified = config.pop("_moelab")["verified"]
    parsed = ModelSpec.from_hf_config(config, name=name)
    preset = ModelSpec.preset(name)
    assert preset.verified == verified
    assert parsed == preset.model_copy(update={"source": "", "verified": False, "notes": ""})
    assert parsed.fingerprint == preset.fingerprint


@pytest.mark.parametrize("name", presets())
def test_presets_say_where_they_are_from_and_survive_json(name):
    spec = ModelSpec.preset(name)
    assert spec.source
    assert spec.name == name
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_preset_files_hold_only_known_fields():
    from moelab.domain import presets as files

    known = set(ModelSpec.model_fields) | {"index_topk_freq", "index_skip_topk_offset"}
    for name in presets():
        assert set(files.read(name)) <= known, name


def test_nested_config_takes_quantisation_from_either_level():
    text = SMALL_MLA | {"model_type": "kimi_k2"}
    int4 = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4, "group_size": 32, "symmetric": True}}},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
    }
    inside = {"model_type": "kimi_k25", "text_config": text | {"quantization_config": int4}}
    outside = {"model_type": "kimi_k25", "text_config": text, "quantization_config": int4}
    flat = text | {"quantization_config": int4}
    specs = [ModelSpec.from_hf_config(config) for config in (inside, outside, flat)]
    assert specs[0] == specs[1] == specs[2]
    assert specs[0].native_formats["routed_experts"] == "int4_g32"
    assert {part for part, name in specs[0].native_formats.items() if name == "bf16"} == set(
        specs[0].params_of_part
    ) - {"routed_experts"}


def test_fingerprint_is_stable_and_follows_the_architecture():
    assert ModelSpec.preset("kimi-k2.6").fingerprint == "a066c106666dc4f4"  # plans carry it: it may never change
    same = [("kimi-k2.5", "kimi-k2.6"), ("kimi-k2-instruct", "kimi-k2.6"), ("deepseek-v3", "deepseek-r1")]
    for one, other in same:
        assert ModelSpec.preset(one).fingerprint == ModelSpec.preset(other).fingerprint
    assert len({ModelSpec.preset(name).fingerprint for name in presets()}) == len(presets()) - 6
    spec = ModelSpec.preset("kimi-k2.6")
    changed = {"n_routed_experts": 385, "routed_scaling_factor": 2.5, "q_lora_rank": 1537, "use_routing_bias": False}
    for field, value in changed.items():
        assert spec.model_copy(update={field: value}).fingerprint != spec.fingerprint, field


def test_what_a_config_leaves_out_is_what_transformers_assumes():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for family, row in FAMILIES.items():
        config = CONFIG_MAPPING[family]()
        for field in set(row.defaults) - {"scoring_func", "topk_method"}:
            assumed = getattr(config, field, row.defaults[field])
            assert assumed == row.defaults[field], (family, field)
        if row.default_head_dim is not None:
            assert config.head_dim == row.default_head_dim


# --- refusals ---

CONFIG = SMALL_MLA | {"model_type": "deepseek_v3"}
GQA = SMALL_GQA | {"model_type": "qwen3_moe"}
DSA = SMALL_DSA | {"model_type": "glm_moe_dsa"}
OSS = SMALL_GQA | {"model_type": "gpt_oss", "sliding_window": 8}
FP8 = {"quant_method": "fp8", "weight_block_size": [64, 64]}
TWO_LEVELS = {
    "model_type": "kimi_k25",
    "tie_word_embeddings": True,
    "text_config": CONFIG | {"tie_word_embeddings": False},
}

CONTRADICTIONS = [
    ({"model_type": "llama"}, "model_type"),
    ({}, "model_type"),
    (TWO_LEVELS, "tie_word_embeddings"),
    ({"model_type": "kimi_k25", "text_config": 3}, "text_config"),
    (CONFIG | {"num_experts": 9}, "n_routed_experts"),
    (CONFIG | {"hidden_size": "48"}, "hidden_size"),
    (CONFIG | {"hidden_size": True}, "hidden_size"),
    (CONFIG | {"vocab_size": 0}, "vocab_size"),
    (CONFIG | {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    (CONFIG | {"n_group": 3}, "n_group"),
    (CONFIG | {"n_group": 2, "topk_group": 3}, "topk_group"),
    (CONFIG | {"n_group": 8, "topk_group": 8}, "n_group"),
    (CONFIG | {"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "num_experts_per_tok"),
    (CONFIG | {"first_k_dense_replace": 5}, "first_k_dense_replace"),
    (CONFIG | {"mlp_layer_types": ["sparse"] * 5}, "mlp_layer_types"),
    (CONFIG | {"moe_layer_freq": 2}, "moe_layer_freq"),
    (CONFIG | {"mlp_bias": True}, "mlp_bias"),
    (CONFIG | {"qk_head_dim": 17}, "qk_head_dim"),
    (CONFIG | {"routed_expert_hidden_size": 24}, "routed_expert_hidden_size"),
    (CONFIG | {"quantization_config": {"quant_method": "awq"}}, "quant_method"),
    (CONFIG | {"quantization_config": FP8}, "weight_block_size"),
    (CONFIG | {"quantization_config": {"quant_method": "compressed-tensors"}}, "config_groups"),
    (GQA | {"num_attention_heads": 7}, "head_dim"),
    (GQA | {"num_key_value_heads": 4}, "num_key_value_heads"),
    (GQA | {"mlp_only_layers": [9], "intermediate_size": 70}, "mlp_only_layers"),
    (GQA | {"mlp_only_layers": [0, 1, 2, 3, 4], "intermediate_size": 70}, "mlp_only_layers"),
    (GQA | {"mlp_only_layers": [0]}, "intermediate_size"),
    (GQA | {"use_qk_norm": False}, "use_qk_norm"),
    (DSA | {"indexer_types": ["full"] * 4}, "indexer_types"),
    (DSA | {"indexer_types": ["shared"] + ["full"] * 4}, "indexer_types"),
    (DSA | {"q_lora_rank": None}, "q_lora_rank"),
    (OSS | {"layer_types": ["full_attention"]}, "layer_types"),
    (OSS | {"layer_types": ["chunked_attention"] * 5}, "layer_types"),
    (OSS | {"sliding_window": None, "layer_types": ["sliding_attention"] * 5}, "sliding_window"),
    (OSS | {"intermediate_size": 21}, "moe_intermediate_size"),
]


@pytest.mark.parametrize(("config", "field"), CONTRADICTIONS)
def test_contradictions_are_refused_by_field_name(config, field):
    with pytest.raises(ValueError, match=rf"{field}.*(expected|should be).*got") as error:
        ModelSpec.from_hf_config(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "field"),
    [(CONFIG, field) for field in SIZES_MLA]
    + [(GQA, field) for field in SMALL_GQA]
    + [(DSA, field) for field in ("index_n_heads", "index_head_dim", "index_topk")]
    + [(OSS, "sliding_window")],
)
def test_a_missing_size_is_refused_by_name(config, field):
    with pytest.raises(ValueError, match=rf"config: {field}: expected .*got nothing"):
        ModelSpec.from_hf_config({name: value for name, value in config.items() if name != field})


def test_files_that_are_no_config_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a model's config\.json"):
        ModelSpec.from_hf_config(tmp_path / "nothing")
    broken = tmp_path / "config.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: expected JSON"):
        ModelSpec.from_hf_config(tmp_path)
    broken.write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        ModelSpec.from_hf_config(broken)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"model is 'kimi', expected one of .*kimi-k2\.6"):
        ModelSpec.preset("kimi")
    spec = ModelSpec.preset("olmoe-1b-7b")
    with pytest.raises(ValueError, match=r"formats: expected parts among .*got 'experts'"):
        spec.weight_bytes({"experts": "bf16"})
    with pytest.raises(ValueError, match="weight format: expected one of"):
        spec.memory(10, formats="Q4_K_M")
    with pytest.raises(ValueError, match="context: expected an integer >= 0, got -1"):
        spec.kv_cache_bytes(-1)
    with pytest.raises(ValueError, match="batch: expected an integer >= 1, got 0"):
        spec.memory(10, 0)
    with pytest.raises(ValueError, match="Instance is frozen"):
        spec.hidden_size = 3


@pytest.mark.parametrize("name", INEXACT)
def test_sizes_that_are_not_known_are_refused_by_name(name):
    spec = ModelSpec.preset(name)
    for what in ("total_params", "active_params", "params_of_part", "native_formats", "non_routed_params"):
        with pytest.raises(ValueError, match=rf"of {name}: expected a model whose tensors are all known"):
            getattr(spec, what)
    for call in (spec.weight_bytes, lambda: spec.kv_cache_bytes(10), lambda: spec.memory(10)):
        with pytest.raises(ValueError, match=name):
            call()
    assert spec.expert_bytes("bf16") == 2 * spec.expert_params
    assert spec.routed_params == spec.num_moe_layers * spec.n_routed_experts * spec.expert_params
    assert "not known exactly" in spec._repr_html_()
    with pytest.raises(ValueError, match="sizes_exact: expected False"):
        ModelSpec.model_validate(spec.model_dump() | {"sizes_exact": True})


def test_expert_shapes_and_latent_experts():
    assert ModelSpec.preset("kimi-k2.6").expert_shapes == {
        "gate_proj": (2048, 7168),
        "up_proj": (2048, 7168),
        "down_proj": (7168, 2048),
    }
    assert ModelSpec.preset("kimi-k3").expert_shapes["down_proj"] == (3584, 3072)


# --- properties ---

FORMATS = st.sampled_from(["float32", "bf16", "int8_g32", "int4_g32", "fp8_128x128", "mxfp4"])
SPECS = st.sampled_from(EXACT).map(ModelSpec.preset)
CACHES = st.sampled_from(["float32", "bf16", "fp8", "fp8_g128", "Q8_0"])


@settings(max_examples=60, deadline=None)
@given(SPECS, st.dictionaries(st.sampled_from(PARTS), FORMATS))
def test_bytes_add_up_over_parts_and_a_part_depends_on_its_own_format(spec, formats):
    sizes = spec.bytes_of_part(formats)
    native = spec.bytes_of_part()
    assert sum(sizes.values()) == spec.weight_bytes(formats) == spec.memory(5, 1, formats).weight_bytes
    for part, size in sizes.items():
        if part in formats:
            assert size == spec.bytes_of_part(formats[part])[part]
        else:
            assert size == native[part]
    routed = formats.get("routed_experts", spec.native_formats["routed_experts"])
    assert sizes["routed_experts"] == spec.num_moe_layers * spec.n_routed_experts * spec.expert_bytes(routed)


@settings(max_examples=60, deadline=None)
@given(SPECS, st.integers(0, 10**6), st.integers(1, 64), CACHES, st.booleans())
def test_memory_grows_with_context_and_batch(spec, context, batch, cache, expanded):
    def size(context, batch):
        return spec.kv_cache_bytes(context, batch, cache, expanded)

    assert size(context, batch) == batch * size(context, 1)
    assert size(context, batch) <= size(context + 1, batch)
    assert size(context, batch) <= size(context, batch + 1)
    memory = spec.memory(context, batch, "bf16", cache, expanded)
    assert memory.cache_bytes == size(context, batch)
    assert memory.total_bytes == memory.weight_bytes + memory.cache_bytes == sum(memory.bytes_of_part.values())
    # One more token costs at least every layer that does not slide.
    sliding = spec.layer_types.count("sliding_attention") if spec.layer_types else 0
    assert size(context + 1, 1) - size(context, 1) >= (spec.num_hidden_layers - sliding) * (size(1, 1) > 0)


@settings(max_examples=40, deadline=None)
@given(SPECS)
def test_counts_are_consistent(spec):
    parts = spec.params_of_part
    assert sum(parts.values()) == spec.total_params == sum(tensor.params for tensor in tensors_of(spec))
    assert parts["routed_experts"] == spec.routed_params
    assert spec.total_params == spec.non_routed_params + spec.routed_params
    assert spec.always_active_params < spec.active_params < spec.active_params_with_embedding < spec.total_params
    assert spec.weight_bytes("float32") == 4 * spec.total_params
    correction = sum(tensor.params for tensor in tensors_of(spec) if tensor.kind == "float32")
    assert spec.weight_bytes("bf16") == 2 * spec.total_params + 2 * correction


def test_tied_embedding_is_counted_once_and_stays_active():
    tied = small_spec("qwen3_moe", SMALL_GQA | {"tie_word_embeddings": True})
    free = small_spec("qwen3_moe", SMALL_GQA)
    assert free.total_params - tied.total_params == 101 * 48
    assert tied.active_params == free.active_params


# --- display ---


def test_results_show_themselves():
    spec = ModelSpec.preset("kimi-k2.6")
    assert str(spec) == "kimi-k2.6: kimi_k2 (60 x 384), top-8, 1026.41 B parameters"
    assert "routed_experts" in spec._repr_html_()
    frame = spec.to_frame()
    assert frame["params"].sum() == spec.total_params
    assert frame["native_bytes"].sum() == spec.weight_bytes()
    memory = spec.memory(300000, 2, {"attention": "Q8_0"})
    assert memory.beyond_context
    assert memory.formats["attention"] == "Q8_0"
    assert memory.formats["kv_cache"] == "bf16"
    assert memory.to_frame()["bytes"].sum() == memory.total_bytes
    assert "longer than the model" in memory._repr_html_()
    assert str(memory).startswith("kimi-k2.6: 6")


def test_ground_floor_needs_neither_torch_nor_pandas():
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('torch', 'pandas', 'transformers'): sys.modules[name] = None\n"
        "from moelab.domain.model import ModelSpec\n"
        "print(ModelSpec.preset('kimi-k2.6').memory(8192))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kimi-k2.6: 594.8 GB")
