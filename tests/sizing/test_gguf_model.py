"""GGUF headers: written by an independent twin, read back exactly; damage and contradictions are refused by name."""

import numpy as np
import pytest

from moelab.domain.model import ModelSpec, presets
from moelab.domain.presets import read as read_preset
from moelab.formats.gguf_header import TYPES, GgufTensor, matches, read_header
from moelab.sizing import size
from moelab.sizing.gguf_config import ARCHITECTURES
from moelab.sizing.gguf_model import read_gguf
from tests.gguf_files import deepseek2, num_bytes, of_config, qwen3moe, write_gguf


def random_sizes(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "hidden_size": 256 * int(rng.integers(1, 4)),
        "moe_intermediate_size": 256 * int(rng.integers(1, 3)),
        "intermediate_size": 256 * int(rng.integers(1, 5)),
        "num_attention_heads": int(rng.integers(1, 5)),
        "qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "v_head_dim": 32 * int(rng.integers(1, 4)),
        "kv_lora_rank": 32 * int(rng.integers(1, 5)), "q_lora_rank": 32 * int(rng.integers(1, 5)),
        "n_routed_experts": int(rng.integers(4, 20)), "num_experts_per_tok": 3, "n_shared_experts": 1,
        "num_hidden_layers": int(rng.integers(2, 6)), "first_k_dense_replace": 1,
        "vocab_size": int(rng.integers(40, 90)),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_totals_are_those_of_the_tensors(tmp_path, seed):
    sizes = random_sizes(seed)
    metadata, tensors = deepseek2(sizes, merged_kv_b=bool(seed % 2))
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata, tensors, version=2 + seed % 2)
    model = read_gguf(path)
    assert matches(path)
    assert model.total_params == sum(int(np.prod(shape)) for _, shape, _ in tensors)
    assert sum(model.bytes_of_part.values()) == sum(num_bytes(shape, kind) for _, shape, kind in tensors)
    expert = [(shape, kind) for name, shape, kind in tensors if "_exps" in name]
    assert model.bytes_of_part["routed_experts"] == sum(num_bytes(*one) for one in expert)
    spec = model.spec()
    assert spec.params_of_part == model.params_of_part
    assert spec.active_params == model.active_params
    assert spec.kv_cache_bytes(100) == 100 * sizes["num_hidden_layers"] * 2 * (sizes["kv_lora_rank"] + 32)
    assert model.recipe().weight_bytes(spec) == sum(model.bytes_of_part.values())
    assert model.header.metadata["tokenizer.ggml.tokens"] == {"length": 1500}  # skipped, not kept


@pytest.mark.parametrize("tied", [False, True])
def test_head_dim_is_that_of_the_header(tmp_path, tied):
    sizes = {
        "hidden_size": 512, "moe_intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 32, "n_routed_experts": 7, "num_experts_per_tok": 2, "num_hidden_layers": 3, "vocab_size": 55,
    }  # fmt: skip
    metadata, tensors = qwen3moe(sizes, tied=tied)
    path = tmp_path / "q.gguf"
    write_gguf(path, metadata, tensors)
    model = read_gguf(path)
    spec = model.spec()
    assert spec.head_dim == 32
    assert spec.kv_cache_bytes(10) == 10 * 3 * 2 * 2 * 32 * 2
    assert spec.total_params == model.total_params == sum(int(np.prod(shape)) for _, shape, _ in tensors)
    assert spec.active_params == model.active_params
    assert spec.tie_word_embeddings is tied


def test_split_models_are_read_by_their_first_file(tmp_path):
    metadata, tensors = deepseek2(random_sizes(9))
    for number, part in enumerate((tensors[:7], tensors[7:]), 1):
        split = {"split.count": 2, "split.no": number - 1, "split.tensors.count": len(tensors)}
        write_gguf(tmp_path / f"m-0000{number}-of-00002.gguf", (metadata if number == 1 else {}) | split, part)
    first = tmp_path / "m-00001-of-00002.gguf"
    assert len(read_header(first).tensors) == len(tensors)
    with pytest.raises(ValueError, match="expected the first of 2 files"):
        read_header(tmp_path / "m-00002-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ValueError, match=r"m-00002-of-00002\.gguf: expected beside"):
        read_header(first)


def test_layers_beyond_the_model_are_counted_apart(tmp_path):
    sizes = random_sizes(3) | {"num_hidden_layers": 4}
    metadata, tensors = deepseek2(sizes)
    _, less = deepseek2(sizes | {"num_hidden_layers": 3})
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata | {"deepseek2.nextn_predict_layers": 1}, tensors)
    model = read_gguf(path)
    assert model.total_params == sum(int(np.prod(shape)) for _, shape, _ in less)
    assert model.total_params + model.mtp_params == sum(int(np.prod(shape)) for _, shape, _ in tensors)
    assert model.spec().num_hidden_layers == 3


@pytest.mark.parametrize("seed", range(30))
def test_cut_anywhere_a_header_is_refused_with_the_file_name(tmp_path, seed):
    path = tmp_path / "m.gguf"
    write_gguf(path, *deepseek2(random_sizes(seed)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(np.random.default_rng(seed).integers(0, len(whole)))])
    with pytest.raises(ValueError, match=r"m\.gguf"):
        read_header(path)


def test_flipped_bytes_never_crash_or_hang(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, *deepseek2(random_sizes(1)))
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(7), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            read_header(path)
        except ValueError as error:
            refused += "m.gguf" in str(error)
    assert refused > 10


def test_contradictions_and_unknown_architectures_are_refused_by_name(tmp_path):
    path = tmp_path / "m.gguf"
    metadata, tensors = deepseek2(random_sizes(2))
    write_gguf(path, metadata | {"deepseek2.expert_count": metadata["deepseek2.expert_count"] + 1}, tensors)
    with pytest.raises(ValueError, match=r"router: expected .* parameters from the header's sizes, got"):
        read_gguf(path).spec()
    del metadata["deepseek2.attention.kv_lora_rank"]
    write_gguf(path, metadata, tensors)
    with pytest.raises(ValueError, match=r"expected the key deepseek2\.attention\.kv_lora_rank"):
        read_gguf(path).spec()
    renamed = {key.replace("deepseek2", "other"): item for key, item in metadata.items()}
    write_gguf(path, renamed | {"general.architecture": "other"}, tensors)
    assert read_gguf(path).total_params > 0
    with pytest.raises(ValueError, match=r"general\.architecture: expected one of deepseek2, .*got 'other'"):
        read_gguf(path).spec()
    write_gguf(path, metadata, [*tensors, ("blk.0.strange.weight", (256,), "float32")])
    with pytest.raises(ValueError, match=r"tensor blk\.0\.strange\.weight"):
        read_gguf(path)
    path.write_bytes(b"safetensors")
    with pytest.raises(ValueError, match="expected a GGUF file"):
        read_header(path)
    assert not matches(path)


def test_the_gguf_package_agrees(tmp_path):
    """ggml's own writer and its table of block sizes."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for number, kind in TYPES.items():
        values, num_block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
        assert GgufTensor("t", (8 * values, 3), number).num_bytes == 24 * num_block_bytes, kind
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(str(path), "deepseek2")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.scores", [0.5] * 3000)
    writer.add_float32("deepseek2.expert_weights_scale", 2.5)
    writer.add_tensor("token_embd.weight", np.zeros((10, 64), np.float32))
    packed = gguf.quants.quantize(np.zeros((8, 64), np.float32), GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.own("block_count") == 2
    assert header.own("expert_weights_scale") == 2.5
    assert header.metadata["tokenizer.ggml.scores"] == {"length": 3000}
    assert [(t.shape, t.num_bytes) for t in header.tensors] == [((64, 10), 2560), ((64, 8), 544)]


EXACT = [name for name in presets() if ModelSpec.preset(name).sizes_exact]


@pytest.mark.parametrize("name", EXACT)
def test_headers_of_every_preset_give_it_back(tmp_path, name):
    """llama.cpp's names and keys of the released shapes: totals of the tensors, cache and config are the preset's."""
    config = read_preset(name)
    metadata, tensors = of_config(config.get("text_config", config))
    path = tmp_path / f"{name}.gguf"
    write_gguf(path, metadata, tensors)
    model, preset = read_gguf(path), ModelSpec.preset(name)
    spec = model.spec()
    assert model.total_params == sum(int(np.prod(shape)) for _, shape, _ in tensors) == preset.total_params
    assert model.active_params == preset.active_params
    assert spec.params_of_part == preset.params_of_part
    for context in (1, 100, 5000):
        assert spec.kv_cache_bytes(context) == preset.kv_cache_bytes(context)
    assert (spec.family, spec.layer_types, spec.indexer_types) == (
        preset.family, preset.layer_types, preset.indexer_types
    )  # fmt: skip
    sized = size(spec, "forge-moe-gen6+2x-h200", format=model.recipe())
    assert sized.recipe.weight_bytes(spec) == sum(num_bytes(shape, kind) for _, shape, kind in tensors)


def test_every_architecture_has_a_preset_that_shows_it():
    shown = {
        of_config(config.get("text_config", config))[0]["general.architecture"] for config in map(read_preset, EXACT)
    }
    assert shown == set(ARCHITECTURES)


def test_unknown_or_uneven_headers_are_refused_by_key(tmp_path):
    metadata, tensors = of_config(read_preset("gpt-oss-20b"))
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata | {"gpt-oss.attention.head_count_kv": [8] * 23 + [4]}, tensors)
    with pytest.raises(ValueError, match=r"gpt-oss\.attention\.head_count_kv: expected one whole number"):
        read_gguf(path).spec()
    write_gguf(path, metadata | {"gpt-oss.attention.head_count_kv": [8] * 24}, tensors)
    assert read_gguf(path).spec().num_key_value_heads == 8
    write_gguf(path, {key: item for key, item in metadata.items() if "sliding" not in key}, tensors)
    with pytest.raises(ValueError, match=r"expected the key gpt-oss\.attention\.sliding_window"):
        read_gguf(path).spec()
    metadata, tensors = of_config(read_preset("mixtral-8x7b"))
    dense = [row for row in tensors if "_exps" not in row[0] and "gate_inp" not in row[0]]
    write_gguf(path, {key: item for key, item in metadata.items() if "expert" not in key}, dense)
    with pytest.raises(ValueError, match=r"expected the key llama\.expert_count"):
        read_gguf(path).spec()
