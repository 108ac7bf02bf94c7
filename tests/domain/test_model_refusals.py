"""Configs that contradict themselves, lack a size or are none, and sizes that are not known: refused by name."""

import pytest

from moelab.domain.model import ModelSpec
from tests.domain.small_configs import SIZES_MLA, SMALL_DSA, SMALL_GQA, SMALL_MLA

INEXACT = ["deepseek-v4-flash", "kimi-k3"]
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
