"""ModelSpec: presets and configs, properties of sizes and memory, how it shows itself."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.model import ModelSpec, presets
from moelab.domain.model_families import FAMILIES
from moelab.domain.model_tensors import PARTS, tensors_of
from tests.domain.small_configs import SMALL_GQA, SMALL_MLA, small_spec

SHARED_MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
EXACT = [name for name in presets() if ModelSpec.preset(name).sizes_exact]


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
