"""Tiny random models for the engine tests: transformers' own model as the oracle, and checkpoints of it.

Written with transformers and compressed-tensors only, so that the loader is tested against somebody
else's idea of the format.
"""

import json

import torch
from safetensors.torch import save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)

YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64,
    "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

DEFAULTS = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 70, "moe_intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "n_shared_experts": 1, "n_routed_experts": 12, "kv_lora_rank": 16, "q_lora_rank": 24,
    "qk_rope_head_dim": 8, "v_head_dim": 12, "qk_nope_head_dim": 10, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-2,
    "rope_parameters": PLAIN, "initializer_range": 0.08, "routed_scaling_factor": 1.7, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def tiny_hf(seed=0, **changes):
    """A random float32 transformers model, eager attention and experts, biased routers."""
    fields = DEFAULTS | changes
    fields["num_key_value_heads"] = fields["num_attention_heads"]
    config = DeepseekV3Config(**fields, attn_implementation="eager")
    torch.manual_seed(seed)
    model = DeepseekV3ForCausalLM(config).float().eval()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
            if name.endswith("e_score_correction_bias"):
                tensor.uniform_(-0.2, 0.2)
            elif "norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("mlp.gate.weight"):
                tensor.normal_(0, 0.3)
            elif name.endswith("bias"):
                tensor.normal_(0, 0.1)
    return model


def save_hf(model, directory, **kwargs):
    model.save_pretrained(directory, **kwargs)
    return directory


def hf_logits(model, token_ids):
    with torch.no_grad():
        return model(torch.as_tensor(token_ids)[None]).logits[0]


def write_json(path, value):
    path.write_text(json.dumps(value))


def quantise_int4(weight, seed):
    """(q int8 [R, C] in -8..7, scale bf16 [R, C / 32]) of a float weight, with q = -8 present."""
    groups = weight.unflatten(1, (-1, 32))
    scale = (groups.abs().amax(-1) / 8).clamp_min(1e-8).to(torch.bfloat16)
    q = (groups / scale.float()[..., None]).round().clamp(-8, 7).to(torch.int8).flatten(1)
    generator = torch.Generator().manual_seed(seed)
    q[torch.rand(q.shape, generator=generator) < 0.02] = -8
    return q, scale


def kimi_k26_checkpoint(directory, twin_directory, seed=0, words=torch.int32, num_shards=3, nested=True):
    """A tiny K2.6 in its real disk form, and its twin: a float32 deepseek_v3 with dequantised experts.

    Every weight that is not an expert is a bf16 number. Returns the twin as a transformers model.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    twin = tiny_hf(seed, rope_parameters=YARN, max_position_embeddings=512, rms_norm_eps=1e-2, num_hidden_layers=3)
    config = twin.config
    tensors = {}
    prefix = "language_model." if nested else ""
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            if ".mlp.experts." in name:
                for expert in range(config.n_routed_experts):
                    base = f"{prefix}{name.rsplit('.', 1)[0]}.{expert}."
                    parts = {"down_proj": tensor[expert]}
                    if name.endswith("gate_up_proj"):
                        gate, up = tensor[expert].chunk(2)
                        parts = {"gate_proj": gate, "up_proj": up}
                    for projection, weight in parts.items():
                        q, scale = quantise_int4(weight, seed + expert)
                        weight.copy_((q.float().unflatten(1, (-1, 32)) * scale.float()[..., None]).flatten(1))
                        packed = pack_to_int32(q, 4)
                        packed = packed.view(torch.uint8) if words is torch.uint8 else packed
                        tensors[f"{base}{projection}.weight_packed"] = packed.contiguous()
                        tensors[f"{base}{projection}.weight_scale"] = scale
                        tensors[f"{base}{projection}.weight_shape"] = torch.tensor(weight.shape, dtype=torch.int32)
            else:
                bias = name.endswith("e_score_correction_bias")
                if not bias:
                    tensor.copy_(tensor.to(torch.bfloat16).float())
                tensors[prefix + name] = tensor.clone() if bias else tensor.to(torch.bfloat16)
    if nested:
        tensors["vision_tower.patch_embed.proj.weight"] = torch.randn(4, 3, 2, 2, dtype=torch.bfloat16)
        tensors["vision_tower.encoder.blocks.0.norm0.weight"] = torch.ones(4, dtype=torch.bfloat16)
        tensors["mm_projector.linear_1.weight"] = torch.randn(4, 4, dtype=torch.bfloat16)

    text = {k: v for k, v in DEFAULTS.items() if k not in ("rope_parameters", "initializer_range")}
    text |= {
        "model_type": "kimi_k2", "num_key_value_heads": 4, "rms_norm_eps": 1e-2, "rope_theta": YARN["rope_theta"],
        "rope_scaling": {("type" if k == "rope_type" else k): v for k, v in YARN.items() if k != "rope_theta"},
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "hidden_act": "silu",
        "moe_layer_freq": 1, "num_nextn_predict_layers": 0, "tie_word_embeddings": False, "attention_bias": False,
        "dtype": "bfloat16", "quantization_config": QUANTIZATION,
    }  # fmt: skip
    outer = text
    if nested:
        outer = {
            "architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "text_config": text,
            "tie_word_embeddings": False, "eos_token_id": 2, "vision_config": {"vt_hidden_size": 4},
            "auto_map": {"AutoModel": "modeling_kimi_k25.KimiK25ForConditionalGeneration"},
        }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", outer)
    write_shards(directory, tensors, num_shards)
    (directory / "modeling_kimi_k25.py").write_text("raise SystemExit('code of a checkpoint was executed')\n")
    save_hf(twin, twin_directory)
    return twin


QUANTIZATION = {
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "dynamic": False, "group_size": 32, "num_bits": 4, "observer": "minmax", "observer_kwargs": {},
                "strategy": "group", "symmetric": True, "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}  # fmt: skip


def write_shards(directory, tensors, num_shards):
    """Tensors dealt round over shards, with an index, as the Hub has them."""
    names = sorted(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[shard::num_shards]}
        save_file(part, directory / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
