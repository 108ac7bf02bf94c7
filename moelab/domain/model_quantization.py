"""Native quantisation: what a config's `quantization_config` says about each part.  Floor 0.

Reads the three schemes of the models here: `fp8` with 128 x 128 blocks (DeepSeek, MiniMax),
compressed-tensors `pack-quantized` int4 and `mxfp4-pack-quantized` (Kimi), `mxfp4` (gpt-oss).
Others are refused by name. It says which PARTS are quantised; a part is quantised as a whole.
It does not read a checkpoint: what is on disk is the loader's to check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# One real module name of each part that may be quantised, for matching ignore lists against.
MODULE_OF_PART: dict[str, str] = {
    "attention": "model.layers.9.self_attn.o_proj",
    "indexer": "model.layers.9.self_attn.indexer.wq_b",
    "dense_mlp": "model.layers.0.mlp.gate_proj",
    "shared_experts": "model.layers.9.mlp.shared_experts.gate_proj",
    "routed_experts": "model.layers.9.mlp.experts.0.gate_proj",
    "lm_head": "lm_head",
}


def read_quantization(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """`quant_format` and `quantized_parts` of a text config; ("bf16", ()) when it has none.

    A compact config may state the two fields themselves (presets do). ValueError names the field
    of `quantization_config` that is unknown.
    """
    if "quant_format" in config:
        return {
            "quant_format": config["quant_format"],
            "quantized_parts": tuple(config.get("quantized_parts", ())),
        }
    quantization = config.get("quantization_config")
    if quantization is None:
        return {"quant_format": "bf16", "quantized_parts": ()}
    method = quantization.get("quant_method")
    parts: tuple[str, ...]
    if method == "mxfp4":
        return {"quant_format": "mxfp4", "quantized_parts": ("routed_experts",)}
    if method == "fp8":
        if list(quantization.get("weight_block_size") or ()) != [128, 128]:
            raise _unknown(model, "weight_block_size", "[128, 128]", quantization.get("weight_block_size"))
        kept = quantization.get("modules_to_not_convert") or ()
        # DeepSeek's checkpoints keep embeddings, lm_head and routers plain without saying so.
        parts = tuple(part for part in MODULE_OF_PART if part != "lm_head" and not _in_fp8_list(part, kept))
        expert_dtype = config.get("expert_dtype")
        if expert_dtype not in (None, "fp8"):  # DeepSeek-V4: the experts have a format of their own
            parts = tuple(part for part in parts if part != "routed_experts")
        return {"quant_format": "fp8_128x128", "quantized_parts": parts}
    if method == "compressed-tensors":
        ignored = quantization.get("ignore") or ()
        parts = tuple(part for part, module in MODULE_OF_PART.items() if not _matches(module, ignored))
        return {"quant_format": _compressed_tensors_format(quantization, model), "quantized_parts": parts}
    raise _unknown(model, "quant_method", "fp8, mxfp4 or compressed-tensors", method)


def _unknown(model: str, field: str, expected: str, got: object) -> ValueError:
    return ValueError(
        f"{model} config: quantization_config.{field}: expected {expected}, got {got!r}; "
        "remove quantization_config and name the formats in memory(formats=...)"
    )


def _compressed_tensors_format(quantization: Mapping[str, Any], model: str) -> str:
    groups = list((quantization.get("config_groups") or {}).values())
    if len(groups) != 1:
        raise _unknown(model, "config_groups", "one group", len(groups))
    weights = groups[0].get("weights") or {}
    scheme = (weights.get("type"), weights.get("num_bits"), weights.get("group_size"), weights.get("symmetric"))
    known = {
        ("int", 4, 32, True): "int4_g32",
        ("int", 8, 32, True): "int8_g32",
        ("float", 4, 32, True): "mxfp4",
    }
    if scheme not in known:
        raise _unknown(
            model, "config_groups.weights", f"(type, num_bits, group_size, symmetric) in {list(known)}", scheme
        )
    return known[scheme]


def _matches(module: str, ignored: Any) -> bool:
    """compressed-tensors' rule: an exact module name, or `re:` and a regular expression from the start."""
    return any(
        re.match(entry[3:], module) is not None if entry.startswith("re:") else entry == module for entry in ignored
    )


def _in_fp8_list(part: str, kept: Any) -> bool:
    """transformers' rule for fp8: a dotted name that occurs in the module's path."""
    path = f".{MODULE_OF_PART[part]}."
    return any(f".{name}." in path for name in kept)
