"""A generated checkpoint in the disk form of Kimi K2: random weights of any size, written with safetensors.

int4 experts as compressed-tensors packs them, or bf16 or float32 experts, one tensor each or fused; the rest is bf16.
The numbers are near 1 / 64 in size, so that a forward pass stays finite; they mean nothing. Floor 6.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from moelab.domain.model import ModelSpec
from moelab.engine.models.deepseek_v3 import Model

SHARD_BYTES = 256_000_000
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
QUANTIZATION = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": False,
    }}},
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What a generated model measures; the rest is that of a small K2."""

    hidden_size: int = 3584
    moe_intermediate_size: int = 1024
    num_experts: int = 32
    num_moe_layers: int = 2
    vocab_size: int = 8_000
    form: str = "int4"  # int4, bf16, float32 (one tensor for each expert), or fused (bf16)

    def config(self) -> dict[str, Any]:
        config = {
            "model_type": "kimi_k2", "hidden_size": self.hidden_size, "vocab_size": self.vocab_size,
            "moe_intermediate_size": self.moe_intermediate_size, "intermediate_size": 2 * self.hidden_size,
            "n_routed_experts": self.num_experts, "num_experts_per_tok": min(8, self.num_experts),
            "num_hidden_layers": self.num_moe_layers + 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
            "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": 384, "kv_lora_rank": 256,
            "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "n_group": 1, "topk_group": 1,
            "routed_scaling_factor": 2.8, "norm_topk_prob": True, "scoring_func": "sigmoid", "hidden_act": "silu",
            "topk_method": "noaux_tc", "moe_layer_freq": 1, "rms_norm_eps": 1e-6, "rope_theta": 50000.0,
            "max_position_embeddings": 4096, "tie_word_embeddings": False, "attention_bias": False,
            "num_nextn_predict_layers": 0, "dtype": "float32" if self.form == "float32" else "bfloat16",
        }  # fmt: skip
        return config | ({"quantization_config": QUANTIZATION} if self.form == "int4" else {})


def write_checkpoint(directory: Path, sizes: Sizes, seed: int = 0) -> int:
    """Config and shards; returns the bytes of all tensors. Memory holds one shard."""
    directory.mkdir(parents=True)
    config = sizes.config()
    (directory / "config.json").write_text(json.dumps(config))
    spec = ModelSpec.from_hf_config(config)
    rng = np.random.default_rng(seed)
    shard: dict[str, torch.Tensor] = {}
    file_of: dict[str, str] = {}
    num_bytes = 0

    def write_shard() -> None:
        file = f"model-{len(set(file_of.values())) + 1:05d}.safetensors"
        save_file(shard, directory / file)
        file_of.update(dict.fromkeys(shard, file))
        shard.clear()

    def add(name: str, tensor: torch.Tensor) -> None:
        nonlocal num_bytes
        shard[name] = tensor
        num_bytes += tensor.nbytes
        if sum(other.nbytes for other in shard.values()) > SHARD_BYTES:
            write_shard()

    for name, shape in Model.dense_shapes(spec).items():
        add(name, torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1 else small_numbers(rng, shape))
    for layer in spec.model_layer_of_layer:
        for name, tensor in _experts(rng, sizes):
            add(f"model.layers.{layer}.mlp.experts.{name}", tensor)
    write_shard()
    index = {"metadata": {"total_size": num_bytes}, "weight_map": file_of}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return num_bytes


def small_numbers(rng: np.random.Generator, shape: tuple[int, ...], wide: bool = False) -> torch.Tensor:
    """bf16 numbers of 1/64 to 1/32 with either sign, or such float32 numbers."""
    bits = rng.integers(0, 1 << 64, -(-int(np.prod(shape)) // 4), dtype=np.uint64)
    bits = (bits & np.uint64(0x807F807F807F807F)) | np.uint64(0x3C803C803C803C80)
    numbers = torch.from_numpy(bits.view(np.int16)[: int(np.prod(shape))]).view(torch.bfloat16).view(shape)
    return numbers.float() if wide else numbers


def _experts(rng: np.random.Generator, sizes: Sizes) -> Any:
    """(name, tensor) of the experts of one layer."""
    hidden, inter = sizes.hidden_size, sizes.moe_intermediate_size
    if sizes.form == "fused":
        yield "gate_up_proj", small_numbers(rng, (sizes.num_experts, 2 * inter, hidden))
        yield "down_proj", small_numbers(rng, (sizes.num_experts, hidden, inter))
        return
    for expert in range(sizes.num_experts):
        for projection in PROJECTIONS:
            rows, columns = (hidden, inter) if projection == "down_proj" else (inter, hidden)
            name = f"{expert}.{projection}.weight"
            if sizes.form != "int4":
                yield name, small_numbers(rng, (rows, columns), sizes.form == "float32")
                continue
            words = rng.integers(0, 1 << 64, rows * columns // 16, dtype=np.uint64)
            yield f"{name}_packed", torch.from_numpy(words.view(np.int32)).view(rows, columns // 8)
            yield f"{name}_scale", small_numbers(rng, (rows, columns // 32))
            yield f"{name}_shape", torch.tensor([rows, columns], dtype=torch.int32)
