"""Writes GGUF headers from ggml's published specification; an independent twin of the reader."""

import struct

NUMBERS = {"float32": 0, "float16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "bf16": 30}
BLOCKS = {"float32": (1, 4), "float16": (1, 2), "Q4_0": (32, 18), "Q8_0": (32, 34), "Q4_K": (256, 144)}
BLOCKS |= {"Q6_K": (256, 210), "bf16": (1, 2)}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item) -> bytes:
    """Type and value; integers as uint32, lists of strings or of int32."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if item and isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(text(one) for one in item)
    return struct.pack("<IIQ", 9, 5, len(item)) + b"".join(struct.pack("<i", one) for one in item)


def write_gguf(path, metadata: dict, tensors: list, version: int = 3) -> None:
    """`tensors`: (name, shape with the reduction axis first, format). Only the header; data would follow."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, item in metadata.items():
        out += text(key) + value(item)
    offset = 0
    for name, shape, kind in tensors:
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", NUMBERS[kind], offset)
        offset += num_bytes(shape, kind)
    path.write_bytes(out)


def num_bytes(shape, kind) -> int:
    params = 1
    for size in shape:
        params *= size
    block, block_bytes = BLOCKS[kind]
    assert shape[0] % block == 0
    return params // block * block_bytes


def deepseek2(sizes: dict, experts: str = "Q4_K", rest: str = "Q8_0", merged_kv_b: bool = False):
    """(metadata, tensors) of a small model as llama.cpp's converter names them."""
    s, arch = sizes, "deepseek2"
    hidden, inner, heads = s["hidden_size"], s["moe_intermediate_size"], s["num_attention_heads"]
    rope, nope, v = s["qk_rope_head_dim"], s["qk_nope_head_dim"], s["v_head_dim"]
    latent, q, num_experts = s["kv_lora_rank"], s["q_lora_rank"], s["n_routed_experts"]
    metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": s["num_hidden_layers"],
        f"{arch}.context_length": 4096,
        f"{arch}.embedding_length": hidden,
        f"{arch}.feed_forward_length": s["intermediate_size"],
        f"{arch}.expert_feed_forward_length": inner,
        f"{arch}.leading_dense_block_count": s["first_k_dense_replace"],
        f"{arch}.expert_count": num_experts,
        f"{arch}.expert_used_count": s["num_experts_per_tok"],
        f"{arch}.expert_shared_count": s["n_shared_experts"],
        f"{arch}.expert_gating_func": 2,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.q_lora_rank": q,
        f"{arch}.attention.kv_lora_rank": latent,
        f"{arch}.attention.key_length": latent + rope,
        f"{arch}.attention.value_length": latent,
        f"{arch}.attention.key_length_mla": nope + rope,
        f"{arch}.attention.value_length_mla": v,
        f"{arch}.rope.dimension_count": rope,
        f"{arch}.expert_weights_scale": 2.5,
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(1500)],
        "tokenizer.ggml.token_type": list(range(1500)),
    }
    tensors = [
        ("token_embd.weight", (hidden, s["vocab_size"]), rest),
        ("output.weight", (hidden, s["vocab_size"]), rest),
    ]
    tensors += [("output_norm.weight", (hidden,), "float32")]
    for layer in range(s["num_hidden_layers"]):
        block = f"blk.{layer}."
        tensors += [
            (block + "attn_norm.weight", (hidden,), "float32"),
            (block + "ffn_norm.weight", (hidden,), "float32"),
            (block + "attn_q_a.weight", (hidden, q), rest),
            (block + "attn_q_a_norm.weight", (q,), "float32"),
            (block + "attn_q_b.weight", (q, heads * (nope + rope)), rest),
            (block + "attn_kv_a_mqa.weight", (hidden, latent + rope), rest),
            (block + "attn_kv_a_norm.weight", (latent,), "float32"),
            (block + "attn_output.weight", (heads * v, hidden), rest),
        ]
        if merged_kv_b:
            tensors += [(block + "attn_kv_b.weight", (latent, heads * (nope + v)), rest)]
        else:
            tensors += [
                (block + "attn_k_b.weight", (nope, latent, heads), "float16"),
                (block + "attn_v_b.weight", (latent, v, heads), rest),
            ]
        if layer < s["first_k_dense_replace"]:
            for name, shape in (("gate", (hidden, s["intermediate_size"])), ("up", (hidden, s["intermediate_size"]))):
                tensors.append((f"{block}ffn_{name}.weight", shape, rest))
            tensors.append((block + "ffn_down.weight", (s["intermediate_size"], hidden), rest))
            continue
        shared = inner * s["n_shared_experts"]
        tensors += [
            (block + "ffn_gate_inp.weight", (hidden, num_experts), "float32"),
            (block + "exp_probs_b.bias", (num_experts,), "float32"),
            (block + "ffn_gate_exps.weight", (hidden, inner, num_experts), experts),
            (block + "ffn_up_exps.weight", (hidden, inner, num_experts), experts),
            (block + "ffn_down_exps.weight", (inner, hidden, num_experts), experts),
            (block + "ffn_gate_shexp.weight", (hidden, shared), rest),
            (block + "ffn_up_shexp.weight", (hidden, shared), rest),
            (block + "ffn_down_shexp.weight", (shared, hidden), rest),
        ]
    return metadata, tensors


def qwen3moe(sizes: dict, experts: str = "Q4_K", rest: str = "Q8_0", tied: bool = False):
    """(metadata, tensors) of a small Qwen3 MoE; `head_dim` is not hidden / heads."""
    s, arch = sizes, "qwen3moe"
    hidden, inner, dim = s["hidden_size"], s["moe_intermediate_size"], s["head_dim"]
    heads, kv_heads, num_experts = s["num_attention_heads"], s["num_key_value_heads"], s["n_routed_experts"]
    metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": s["num_hidden_layers"],
        f"{arch}.context_length": 4096,
        f"{arch}.embedding_length": hidden,
        f"{arch}.expert_feed_forward_length": inner,
        f"{arch}.expert_count": num_experts,
        f"{arch}.expert_used_count": s["num_experts_per_tok"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.key_length": dim,
        f"{arch}.attention.value_length": dim,
    }
    tensors = [("token_embd.weight", (hidden, s["vocab_size"]), rest), ("output_norm.weight", (hidden,), "float32")]
    if not tied:
        tensors.append(("output.weight", (hidden, s["vocab_size"]), rest))
    for layer in range(s["num_hidden_layers"]):
        block = f"blk.{layer}."
        tensors += [
            (block + "attn_norm.weight", (hidden,), "float32"),
            (block + "ffn_norm.weight", (hidden,), "float32"),
            (block + "attn_q.weight", (hidden, heads * dim), rest),
            (block + "attn_k.weight", (hidden, kv_heads * dim), rest),
            (block + "attn_v.weight", (hidden, kv_heads * dim), rest),
            (block + "attn_output.weight", (heads * dim, hidden), rest),
            (block + "attn_q_norm.weight", (dim,), "float32"),
            (block + "attn_k_norm.weight", (dim,), "float32"),
            (block + "ffn_gate_inp.weight", (hidden, num_experts), "float32"),
            (block + "ffn_gate_exps.weight", (hidden, inner, num_experts), experts),
            (block + "ffn_up_exps.weight", (hidden, inner, num_experts), experts),
            (block + "ffn_down_exps.weight", (inner, hidden, num_experts), experts),
        ]
    return metadata, tensors
