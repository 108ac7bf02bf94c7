"""A checkpoint that cannot be loaded: one error with file, expected, got and fix; nothing half-loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from moelab.engine import load
from moelab.engine.checkpoint import CheckpointError
from moelab.engine.names import model_types
from tests.engine.tiny_models import kimi_k26_checkpoint, save_hf, tiny_hf


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save_hf(tiny_hf(9), tmp_path_factory.mktemp("good"))


@pytest.fixture
def broken(good, tmp_path):
    shutil.copytree(good, tmp_path / "broken")
    return tmp_path / "broken"


def change_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def change_config(directory, **fields):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def refused(directory, *words, **how):
    with pytest.raises(ValueError) as caught:
        load(directory, **how)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.7.up_proj.weight",
        "model.layers.0.self_attn.kv_a_layernorm.weight",
        "model.layers.2.mlp.gate.e_score_correction_bias",
        "lm_head.weight",
    ],
)
def test_missing_tensor(broken, name):
    change_tensors(broken, lambda tensors: tensors.pop(name))
    refused(broken, "model.safetensors", name, "no such tensor", "complete the download")


def test_wrong_shape(broken):
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    change_tensors(broken, lambda tensors: tensors.update({name: torch.zeros(64, 31)}))
    refused(broken, "model.safetensors", name, "[64, 32]", "[64, 31]")


def test_tensor_that_nobody_uses(broken):
    name = "model.layers.1.self_attn.indexer.wk.weight"
    change_tensors(broken, lambda tensors: tensors.update({name: torch.zeros(2)}))
    refused(broken, "indexer.wk.weight", "only tensors that this architecture uses")


def test_cut_file(broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    refused(broken, "model.safetensors", "as its header says", "download it again")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x10" + bytes(7) + b"{not json at all", b"\xff" * 64])
def test_foreign_file(broken, content):
    (broken / "model.safetensors").write_bytes(content)
    refused(broken, "model.safetensors", "a safetensors header")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pth", "model.pt"])
def test_pickle_is_refused_by_name(broken, name):
    (broken / "model.safetensors").rename(broken / name)
    refused(broken, name, "pickle", "safetensors")


def test_pickle_in_an_index_is_refused(broken):
    index = {"weight_map": {"lm_head.weight": "pytorch_model-00001.bin"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(broken, "pytorch_model-00001.bin", "safetensors")


@pytest.mark.parametrize("file_name", ["../model.safetensors", "/model.safetensors"])
def test_index_does_not_lead_outside(broken, file_name):
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": file_name}}))
    refused(broken, "model.safetensors.index.json")


def test_missing_shard(tmp_path):
    kimi_k26_checkpoint(tmp_path / "k26", tmp_path / "twin")
    (tmp_path / "k26/model-00002-of-00003.safetensors").unlink()
    refused(tmp_path / "k26", "model-00002-of-00003.safetensors", "no such file")


def test_index_that_names_a_tensor_its_shard_lacks(tmp_path):
    kimi_k26_checkpoint(tmp_path / "k26", tmp_path / "twin")
    path = tmp_path / "k26/model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["language_model.lm_head.weight"] = "model-00003-of-00003.safetensors"
    index["weight_map"]["language_model.extra"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    refused(tmp_path / "k26", "safetensors", "no such tensor")


def test_packed_experts_of_another_shape(tmp_path):
    kimi_k26_checkpoint(tmp_path / "k26", tmp_path / "twin", num_shards=1)
    path = tmp_path / "k26/model-00001-of-00001.safetensors"
    tensors = load_file(path)
    tensors["language_model.model.layers.1.mlp.experts.0.up_proj.weight_shape"] = torch.tensor([32, 128])
    save_file(tensors, path)
    refused(tmp_path / "k26", "experts.0.up_proj.weight_shape", "[32, 64]", "[32, 128]")


def test_unknown_type_lists_what_exists(broken):
    change_config(broken, model_type="kimi_k9")
    refused(broken, "kimi_k9", *model_types())
    assert {"deepseek_v3", "kimi_k2", "kimi_k25"} <= set(model_types())


@pytest.mark.parametrize("model_type", ["../../os", "deepseek_v3.py", "__init__", None])
def test_type_is_a_file_name_from_the_list_only(broken, model_type):
    change_config(broken, model_type=model_type)
    refused(broken, "model_type")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scoring_func": "softmax"}, ["scoring_func", "sigmoid"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "silu"]),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["rope type", "longrope"]),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, ["fp8", "convert"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["gptq"]),
    ],
)
def test_what_this_engine_does_not_compute(broken, fields, words):
    change_config(broken, **fields)
    refused(broken, *words)


def test_wrong_choices(good):
    refused(good, "activation", "float32 experts", "f32", "'int8'", activation="int8")
    refused(good, "activation", "'fp4'", activation="fp4")
    refused(good, "dense_dtype", "float32, bfloat16", dense_dtype="float16")
    refused(good, "isa", isa="sse9")


def test_devices_that_are_not_here(good):
    refused(good, "device", "'abacus'", device="abacus")
    refused(good, "device", "'meta'", device="meta")
    if not torch.cuda.is_available():
        refused(good, "device", "'cuda'", "expected cpu", device="cuda")


def test_no_such_directory(tmp_path):
    refused(tmp_path / "nothing", "nothing", "no such directory")
    refused(tmp_path, "config.json", "no such file")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config.json", "expected JSON")


def test_errors_are_value_errors():
    assert issubclass(CheckpointError, ValueError)


def test_broken_tokenizer(broken):
    (broken / "tokenizer.json").write_text("{}")
    refused(broken, "tokenizer.json", "download")
