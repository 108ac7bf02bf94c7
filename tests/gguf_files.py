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


ARCHITECTURE = {
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "kimi_k2": "deepseek2", "kimi_k25": "deepseek2",
    "deepseek_v32": "deepseek32", "glm_moe_dsa": "glm-dsa", "glm4_moe": "glm4moe", "gpt_oss": "gpt-oss",
    "mixtral": "llama", "minimax_m2": "minimax-m2", "olmoe": "olmoe", "qwen3_moe": "qwen3moe",
}  # fmt: skip


def of_config(config: dict, kind: str = "Q8_0"):
    """(metadata, tensors) of an HF config as llama.cpp's converters name them, every matrix in `kind`.

    Written from their names and shapes, layer by layer; it shares nothing with the counting of the package.
    """
    c, arch = config, ARCHITECTURE[config["model_type"]]
    hidden, heads, layers = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
    experts = c.get("n_routed_experts") or c.get("num_local_experts") or c["num_experts"]
    inner = c.get("moe_intermediate_size") or c["intermediate_size"]
    dense_layers, shared = c.get("first_k_dense_replace") or 0, c.get("n_shared_experts") or 0
    metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": layers,
        f"{arch}.context_length": c["max_position_embeddings"],
        f"{arch}.embedding_length": hidden,
        f"{arch}.feed_forward_length": c.get("intermediate_size", inner),
        f"{arch}.attention.head_count": heads,
        f"{arch}.expert_count": experts,
        f"{arch}.expert_used_count": c["num_experts_per_tok"],
    }
    if arch not in ("llama", "olmoe"):
        metadata[f"{arch}.expert_feed_forward_length"] = inner
    if shared:
        metadata[f"{arch}.expert_shared_count"] = shared
        metadata[f"{arch}.leading_dense_block_count"] = dense_layers
    if c["model_type"] in ("deepseek_v3", "kimi_k2", "kimi_k25", "deepseek_v32", "glm_moe_dsa", "glm4_moe"):
        metadata[f"{arch}.expert_gating_func"] = 2
    indexed = _indexed_layers(c)
    latent = c.get("kv_lora_rank")
    if latent:
        nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        metadata |= {
            f"{arch}.attention.kv_lora_rank": latent,
            f"{arch}.attention.key_length_mla": nope + rope,
            f"{arch}.attention.value_length_mla": v,
            f"{arch}.rope.dimension_count": rope,
        }
        if c.get("q_lora_rank"):
            metadata[f"{arch}.attention.q_lora_rank"] = c["q_lora_rank"]
    else:
        kv_heads = c["num_key_value_heads"]
        dim = c.get("head_dim") or hidden // heads
        metadata[f"{arch}.attention.head_count_kv"] = kv_heads
        if c.get("head_dim"):
            metadata[f"{arch}.attention.key_length"] = dim
        if arch == "gpt-oss":
            metadata[f"{arch}.attention.sliding_window"] = c["sliding_window"]
    if indexed:
        metadata |= {
            f"{arch}.attention.indexer.head_count": c["index_n_heads"],
            f"{arch}.attention.indexer.key_length": c["index_head_dim"],
            f"{arch}.attention.indexer.top_k": c["index_topk"],
        }
        if len(indexed) < layers:
            metadata[f"{arch}.attention.indexer.types"] = [int(layer in indexed) for layer in range(layers)]
    tensors = [
        ("token_embd.weight", (hidden, c["vocab_size"]), kind),
        ("output.weight", (hidden, c["vocab_size"]), kind),
        ("output_norm.weight", (hidden,), "float32"),
    ]
    post = "post_attention_norm" if arch in ("glm4moe", "gpt-oss") else "ffn_norm"
    for layer in range(layers):
        rows = [("attn_norm.weight", (hidden,)), (f"{post}.weight", (hidden,))]
        if latent:
            q = c.get("q_lora_rank")
            if q:
                rows += [("attn_q_a.weight", (hidden, q)), ("attn_q_a_norm.weight", (q,))]
                rows += [("attn_q_b.weight", (q, heads * (nope + rope)))]
            else:
                rows += [("attn_q.weight", (hidden, heads * (nope + rope)))]
            rows += [
                ("attn_kv_a_mqa.weight", (hidden, latent + rope)), ("attn_kv_a_norm.weight", (latent,)),
                ("attn_k_b.weight", (nope, latent, heads)), ("attn_v_b.weight", (latent, v, heads)),
                ("attn_output.weight", (heads * v, hidden)),
            ]  # fmt: skip
            if layer in indexed:
                one = c["index_head_dim"]
                rows += [
                    ("indexer.attn_q_b.weight", (q, c["index_n_heads"] * one)),
                    ("indexer.attn_k.weight", (hidden, one)),
                    ("indexer.k_norm.weight", (one,)), ("indexer.k_norm.bias", (one,)),
                    ("indexer.proj.weight", (hidden, c["index_n_heads"])),
                ]  # fmt: skip
        else:
            for name, size in (("q", heads * dim), ("k", kv_heads * dim), ("v", kv_heads * dim)):
                rows.append((f"attn_{name}.weight", (hidden, size)))
                if c.get("attention_bias"):
                    rows.append((f"attn_{name}.bias", (size,)))
            rows.append(("attn_output.weight", (heads * dim, hidden)))
            if arch == "gpt-oss":
                rows += [("attn_output.bias", (hidden,)), ("attn_sinks.weight", (heads,))]
            full = arch in ("olmoe", "minimax-m2")
            if full or arch in ("qwen3moe", "glm4moe"):
                rows.append(("attn_q_norm.weight", (heads * dim if full else dim,)))
                rows.append(("attn_k_norm.weight", (kv_heads * dim if full else dim,)))
        if layer < dense_layers:
            wide = c["intermediate_size"]
            rows += [("ffn_gate.weight", (hidden, wide)), ("ffn_up.weight", (hidden, wide))]
            rows += [("ffn_down.weight", (wide, hidden))]
        else:
            rows.append(("ffn_gate_inp.weight", (hidden, experts)))
            if arch == "gpt-oss":
                rows.append(("ffn_gate_inp.bias", (experts,)))
            elif c["model_type"] not in ("deepseek_v2", "mixtral", "olmoe", "qwen3_moe"):
                rows.append(("exp_probs_b.bias", (experts,)))
            for name, shape in (("gate", (hidden, inner)), ("up", (hidden, inner)), ("down", (inner, hidden))):
                rows.append((f"ffn_{name}_exps.weight", (*shape, experts)))
                if arch == "gpt-oss":
                    rows.append((f"ffn_{name}_exps.bias", (shape[1], experts)))
                if shared:
                    wide = tuple(size * shared if size == inner and size != hidden else size for size in shape)
                    rows.append((f"ffn_{name}_shexp.weight", wide))
        for name, shape in rows:
            plain = len(shape) == 1 or name.endswith(".bias") or shape[0] % 32
            tensors.append((f"blk.{layer}.{name}", shape, "float32" if plain else kind))
    return metadata, tensors


def _indexed_layers(c: dict) -> set[int]:
    """Layers with an indexer of their own: listed, or those up to the offset and every so many after it."""
    if "index_topk" not in c:
        return set()
    every, offset = c.get("index_topk_freq") or 1, c.get("index_skip_topk_offset") or 2
    kinds = c.get("indexer_types")
    if kinds:
        return {layer for layer, kind in enumerate(kinds) if kind == "full"}
    return {layer for layer in range(c["num_hidden_layers"]) if layer < offset or (layer - offset + 1) % every == 0}
