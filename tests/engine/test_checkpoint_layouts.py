"""One model in every disk form that we read, K2.6's real one among them, gives the same logits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from moelab.engine import load
from moelab.engine.loader import load_routed
from moelab.kernels.pool import Pool
from tests.engine.tiny_models import hf_logits, kimi_k26_checkpoint, save_hf, tiny_hf, write_shards

F32_TOLERANCE = 1e-5
# bf16 activations: two roundings of 2^-9 per expert, small beside residual and shared expert.
BF16_TOLERANCE = 1e-2
INT8_TOLERANCE = 3e-2


def rewrite(source, target, change, num_shards=0):
    """Copy a checkpoint with its tensors changed by `change(tensors) -> tensors`."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = change(load_file(source / "model.safetensors"))
    if num_shards:
        write_shards(target, tensors, num_shards)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")


def fuse(tensors):
    """Per-expert tensors joined as transformers holds them in memory."""
    fused = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name}
    layers = {name.split(".mlp.experts.")[0] for name in tensors if ".mlp.experts." in name}
    for layer in layers:
        base = f"{layer}.mlp.experts."
        count = 1 + max(int(name.removeprefix(base).split(".")[0]) for name in tensors if name.startswith(base))
        both = [torch.cat([tensors[f"{base}{e}.{p}_proj.weight"] for p in ("gate", "up")]) for e in range(count)]
        fused[f"{base}gate_up_proj"] = torch.stack(both)
        fused[f"{base}down_proj"] = torch.stack([tensors[f"{base}{e}.down_proj.weight"] for e in range(count)])
    return fused


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    save_hf(tiny_hf(7), directory)
    tokens = torch.arange(30)
    with load(directory) as engine:
        return directory, tokens, engine.forward(tokens)


@pytest.mark.parametrize("num_shards", [0, 3])
@pytest.mark.parametrize("form", ["per expert", "fused"])
def test_same_bits_in_every_form(plain, tmp_path, form, num_shards):
    directory, tokens, expected = plain
    assert any(".mlp.experts.11.up_proj" in name for name in load_file(directory / "model.safetensors"))
    rewrite(directory, tmp_path / "other", fuse if form == "fused" else dict, num_shards)
    with load(tmp_path / "other") as engine:
        torch.testing.assert_close(engine.forward(tokens), expected, atol=0, rtol=0)


def test_multi_token_prediction_layers_are_skipped_and_counted(plain, tmp_path):
    directory, tokens, expected = plain

    def add(tensors):
        extra = {"model.layers.3.eh_proj.weight": torch.zeros(4, 4), "model.layers.3.enorm.weight": torch.ones(4)}
        return tensors | extra

    rewrite(directory, tmp_path / "mtp", add)
    with load(tmp_path / "mtp") as engine:
        assert engine.num_skipped_tensors == {"multi_token_prediction": 2}
        torch.testing.assert_close(engine.forward(tokens), expected, atol=0, rtol=0)


def test_bf16_experts_and_dense_path(plain, tmp_path):
    """A bf16 checkpoint: float32 twin within tolerance, dense type and activation mode said."""
    directory, tokens, _ = plain
    model = tiny_hf(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())

    def halve(tensors):
        return {n: t if n.endswith("correction_bias") else t.to(torch.bfloat16) for n, t in tensors.items()}

    rewrite(directory, tmp_path / "bf16", halve)
    expected = hf_logits(model, tokens)
    with load(tmp_path / "bf16", dense_dtype="float32") as engine:
        assert (engine.weight_format, engine.activation) == ("bf16", "bf16")
        assert float((engine.forward(tokens) - expected).abs().max()) < BF16_TOLERANCE
    with load(tmp_path / "bf16", dense_dtype="float32", activation="f32") as engine:
        assert (engine.weight_format, engine.activation) == ("float32", "f32")
        torch.testing.assert_close(engine.forward(tokens), expected, atol=F32_TOLERANCE, rtol=0)
    with load(tmp_path / "bf16", dense_dtype="bfloat16") as engine:
        assert engine.dense_dtype == "bfloat16"
        # Another rounding at every step: routing may differ, so only the picture as a whole is compared.
        correlation = torch.corrcoef(torch.stack((engine.forward(tokens).flatten(), expected.flatten())))[0, 1]
        assert correlation > 0.99


@pytest.fixture(scope="module", params=[(torch.int32, True), (torch.uint8, True), (torch.int32, False)],
                ids=["K2.6", "K2.6 with uint8 words", "K2-Thinking"])  # fmt: skip
def kimi(request, tmp_path_factory):
    words, nested = request.param
    folder = tmp_path_factory.mktemp("kimi")
    twin = kimi_k26_checkpoint(folder / "k26", folder / "twin", seed=2, words=words, nested=nested)
    tokens = torch.randint(0, 97, (48,), generator=torch.Generator().manual_seed(2))
    return folder, tokens, hf_logits(twin, tokens), nested


def test_kimi_equals_its_dequantised_twin(kimi):
    folder, tokens, expected, nested = kimi
    with load(folder / "k26", activation="f32", dense_dtype="float32") as engine:
        exact = engine.forward(tokens)
        assert engine.num_skipped_tensors == ({"vision": 3} if nested else {})
        assert engine.spec.model_type == "kimi_k2"
    torch.testing.assert_close(exact, expected, atol=F32_TOLERANCE, rtol=0)
    with load(folder / "twin") as twin_engine:
        torch.testing.assert_close(exact, twin_engine.forward(tokens), atol=0, rtol=0)


@pytest.mark.parametrize(("activation", "tolerance"), [("bf16", BF16_TOLERANCE), ("int8", INT8_TOLERANCE)])
def test_kimi_in_int4_is_near_its_twin(kimi, activation, tolerance):
    folder, tokens, expected, _ = kimi
    with load(folder / "k26", activation=activation, dense_dtype="float32") as engine:
        assert (engine.weight_format, engine.activation) == ("int4_g32", activation)
        error = (engine.forward(tokens) - expected).abs().amax(-1)
    # A token whose routing flips at a near tie may stand out; the rest must be close.
    assert float(error.median()) < tolerance / 2
    assert int((error > tolerance).sum()) <= 2


def test_end_tokens_of_both_configs_stop(kimi):
    folder, _, _, nested = kimi
    with load(folder / "k26") as engine:
        assert engine.stop_token_ids == ({1, 2} if nested else {1})


def test_only_the_routed_experts(kimi):
    """What a replay needs: the layers without the dense path, owning their memory."""
    folder, _, _, _ = kimi
    with Pool(1) as pool, load(folder / "k26") as engine:
        layers = load_routed(folder / "k26", pool=pool)
        assert len(layers) == len(engine.routed) == 2
        for ours, theirs in zip(layers, engine.routed, strict=True):
            assert all((ours.owner[e] == theirs.owner[e]).all() for e in range(12))


def test_words_are_those_of_compressed_tensors():
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    from moelab.engine.expert_tensors import as_words, dequantise

    q = torch.randint(-8, 8, (5, 45), dtype=torch.int8)
    packed = pack_to_int32(q, 4)
    ones = torch.ones(5, 2).numpy()
    assert (dequantise(as_words(packed, 45), ones, 45) == q.numpy()).all()
    assert (unpack_from_int32(packed, 4, q.shape) == q).all()
    as_bytes = packed.view(torch.uint8)[:, :23].contiguous()
    assert (dequantise(as_words(as_bytes, 45), ones, 45) == q.numpy()).all()


def test_quantisation_at_the_top_level_of_a_nested_config(tmp_path):
    twin = kimi_k26_checkpoint(tmp_path / "k26", tmp_path / "twin", seed=4)
    tokens = torch.arange(20)
    expected = hf_logits(twin, tokens)
    path = tmp_path / "k26" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = config["text_config"].pop("quantization_config")
    path.write_text(json.dumps(config))
    with load(tmp_path / "k26", activation="f32", dense_dtype="float32") as engine:
        assert engine.spec.quant_format == "int4_g32"
        torch.testing.assert_close(engine.forward(tokens), expected, atol=F32_TOLERANCE, rtol=0)
