"""Write a checkpoint of nano in the disk form of Kimi K2 Thinking, and check what was written.

Knows: config.json of `deepseek_v3` with the compressed-tensors `pack-quantized` block, tensor names,
the int4 packing of routed experts (group 32 along the input, bf16 scale), bf16 for the rest.
Does not know: how the network was trained, or any kernel.

The scale of a group is its element of largest magnitude, with its sign, divided by -8: so that
element is exactly -8 and the whole range [-8, 7] is used; scales may be negative.

    python export.py --folder CACHE --model ../model            # newest checkpoint
    python export.py --folder CACHE --model ../model --verify   # against compressed-tensors and transformers
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from model import Nano, NanoConfig
from safetensors.torch import load_file, save_file
from tokenizer import BOS, BOS_ID, EOS, EOS_ID
from train import load_model, newest

GROUP = 32
IGNORE = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[out, in] float -> q int8 [out, in] in [-8, 7] and scale bf16 [out, in / 32]."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (largest / -8).bfloat16()
    scale[scale == 0] = 1.0
    q = (groups / scale.float()).round().clamp(-8, 7).to(torch.int8)
    return q.flatten(1), scale.squeeze(2)


def pack(q: torch.Tensor) -> torch.Tensor:
    """int8 [out, in] -> int32 [out, in / 8]; value i is in word i // 8, bits 4 * (i % 8), stored as q + 8."""
    nibbles = (q.to(torch.int64) + 8).unflatten(1, (-1, 8)) << (4 * torch.arange(8))
    word = nibbles.sum(2)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    return (((packed.unsqueeze(2) >> (4 * torch.arange(8))) & 15) - 8).flatten(1).to(torch.int8)


def dequantise(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (unpack(packed).float().unflatten(1, (-1, GROUP)) * scale.float().unsqueeze(2)).flatten(1)


def config_json(c: NanoConfig) -> dict:
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "dtype": "bfloat16",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "moe_intermediate_size": c.moe_intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_attention_heads,
        "q_lora_rank": c.q_lora_rank,
        "kv_lora_rank": c.kv_lora_rank,
        "qk_nope_head_dim": c.qk_nope_head_dim,
        "qk_rope_head_dim": c.qk_rope_head_dim,
        "v_head_dim": c.v_head_dim,
        "n_routed_experts": c.n_routed_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "n_shared_experts": c.n_shared_experts,
        "first_k_dense_replace": c.first_k_dense_replace,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": c.routed_scaling_factor,
        "hidden_act": "silu",
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "rope_interleave": True,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": c.max_position_embeddings,
        "initializer_range": 0.02,
        "num_nextn_predict_layers": 0,
        "num_mtp_layers": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": EOS_ID,
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": IGNORE,
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "group",
                        "group_size": GROUP,
                        "dynamic": False,
                        "observer": "minmax",
                        "observer_kwargs": {},
                    },
                }
            },
        },
    }


def tensors_of(model: Nano) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors, per expert and per projection."""
    tensors = {}
    for name, value in model.state_dict().items():
        if ".mlp.experts." in name:
            prefix = name.rsplit(".", 1)[0]
            parts = zip(("gate_proj", "up_proj"), value.chunk(2, 1)) if "gate_up" in name else [("down_proj", value)]
            for projection, experts in parts:
                for e, weight in enumerate(experts):
                    q, scale = quantise(weight)
                    key = f"{prefix}.{e}.{projection}.weight"
                    tensors[f"{key}_packed"], tensors[f"{key}_scale"] = pack(q), scale.contiguous()
                    tensors[f"{key}_shape"] = torch.tensor(weight.shape, dtype=torch.int64)
        else:
            tensors[name] = (value.float() if name.endswith("bias") else value.bfloat16()).contiguous().clone()
    return tensors


def dequantised_state(tensors: dict[str, torch.Tensor], c: NanoConfig) -> dict[str, torch.Tensor]:
    """Tensors of the disk form -> float32 state dict with fused experts, for Nano or DeepseekV3ForCausalLM."""
    state = {k: v.float() for k, v in tensors.items() if ".mlp.experts." not in k}
    for layer in range(c.first_k_dense_replace, c.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        full = {
            p: torch.stack(
                [
                    dequantise(tensors[f"{prefix}.{e}.{p}.weight_packed"], tensors[f"{prefix}.{e}.{p}.weight_scale"])
                    for e in range(c.n_routed_experts)
                ]
            )
            for p in ("gate_proj", "up_proj", "down_proj")
        }
        state[f"{prefix}.gate_up_proj"] = torch.cat([full["gate_proj"], full["up_proj"]], 1)
        state[f"{prefix}.down_proj"] = full["down_proj"]
    return state


def shipped_twin(c: NanoConfig, tensors: dict[str, torch.Tensor]) -> Nano:
    """The network that a reader of the disk form gets, in float32."""
    twin = Nano(c)
    twin.load_state_dict(dequantised_state(tensors, c))
    return twin.eval()


def export(folder: Path, checkpoint: Path, target: Path) -> None:
    model, content = load_model(checkpoint)
    target.mkdir(parents=True, exist_ok=True)
    tensors = tensors_of(model)
    metadata = {"format": "pt", "trained_tokens": str(content["tokens"]), "trained_steps": str(content["step"])}
    save_file(tensors, target / "model.safetensors.partial", metadata=metadata)
    (target / "model.safetensors.partial").chmod(0o644)  # safetensors creates it private
    (target / "model.safetensors.partial").replace(target / "model.safetensors")
    generation = {
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": EOS_ID,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 40,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.c.max_position_embeddings,
    }
    for name, value in (
        ("config.json", config_json(model.c)),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (target / name).write_text(json.dumps(value, indent=2) + "\n")
    shutil.copyfile(folder / "tokens" / "tokenizer.json", target / "tokenizer.json")
    num_bytes = sum(f.stat().st_size for f in target.iterdir())
    print(
        f"{content['tokens'] / 1e6:.2f} M trained tokens, {len(tensors)} tensors, {num_bytes / 1e6:.1f} MB in {target.name}/"
    )


def verify(folder: Path, target: Path, num_windows: int = 9) -> None:
    """Raises unless the packing equals compressed-tensors' and transformers gives the same held-out loss (float32)."""
    import numpy as np
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    tensors = load_file(target / "model.safetensors")
    for key in [k for k in tensors if k.endswith("weight_packed")][::97]:
        shape = torch.Size(tensors[key.replace("packed", "shape")].tolist())
        if not torch.equal(unpack_from_int32(tensors[key], 4, shape), unpack(tensors[key])):
            raise ValueError(f"{key}: compressed-tensors unpacks other values than export.unpack")
    values = json.loads((target / "config.json").read_text())
    values.pop("quantization_config")
    c = NanoConfig(**{k: values[k] for k in NanoConfig.__dataclass_fields__ if k in values})
    hf = DeepseekV3ForCausalLM(DeepseekV3Config(**{**values, "dtype": "float32"})).eval()
    report = hf.load_state_dict(dequantised_state(tensors, c), strict=False)
    if report.missing_keys or report.unexpected_keys:
        raise ValueError(f"transformers: missing {report.missing_keys[:5]}, unexpected {report.unexpected_keys[:5]}")
    twin, rows = shipped_twin(c, tensors), []
    for file in sorted((folder / "tokens").glob("*.held_out.npz")):
        rows += [np.load(file)["tokens"][i * 256 : i * 256 + 257].astype(np.int64) for i in range(num_windows // 9 + 1)]
    batch = torch.from_numpy(np.stack(rows))
    with torch.no_grad():
        a, b = twin.logits(batch[:, :-1]), hf(batch[:, :-1]).logits
        loss = [torch.nn.functional.cross_entropy(x.flatten(0, 1), batch[:, 1:].flatten()).item() for x in (a, b)]
    print(
        f"compressed-tensors agrees; transformers: no missing or unexpected keys; held-out nats/token "
        f"nano {loss[0]:.6f} transformers {loss[1]:.6f}; largest difference of a logit {(a - b).abs().max():.2e}"
    )
    if abs(loss[0] - loss[1]) > 1e-4:
        raise ValueError("transformers gives another held-out loss than the training code")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder to write, or to verify")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--verify", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.verify:
        export(arguments.folder, arguments.checkpoint or newest(arguments.folder), arguments.model)
    verify(arguments.folder, arguments.model)
