"""ModelSpec gives the tables of facts/models_and_sizing.md: sizes, routers, parameters, caches."""

import pytest

from moelab.domain.model import ModelSpec
from moelab.domain.model_tensors import PARTS

# Section 1: preset, layers, first dense, hidden, dense ff, moe ff, E, K, shared, vocab, context, total in billions.
SECTION_1 = [
    ("kimi-k2-instruct", 61, 1, 7168, 18432, 2048, 384, 8, 1, 163840, 131072, 1026.408),
    ("kimi-k2-thinking", 61, 1, 7168, 18432, 2048, 384, 8, 1, 163840, 262144, 1026.408),
    ("kimi-k2.5", 61, 1, 7168, 18432, 2048, 384, 8, 1, 163840, 262144, 1026.408),
    ("kimi-k2.6", 61, 1, 7168, 18432, 2048, 384, 8, 1, 163840, 262144, 1026.408),
    ("deepseek-v3", 61, 3, 7168, 18432, 2048, 256, 8, 1, 129280, 163840, 671.026),
    ("deepseek-r1", 61, 3, 7168, 18432, 2048, 256, 8, 1, 129280, 163840, 671.026),
    ("deepseek-v3.2", 61, 3, 7168, 18432, 2048, 256, 8, 1, 129280, 163840, 671.878),
    ("deepseek-v2-lite", 27, 1, 2048, 10944, 1408, 64, 6, 2, 102400, 163840, 15.706),
    ("qwen3-235b-a22b", 94, 0, 4096, None, 1536, 128, 8, 0, 151936, 40960, 235.094),
    ("qwen3-30b-a3b", 48, 0, 2048, None, 768, 128, 8, 0, 151936, 40960, 30.532),
    ("glm-4.5", 92, 3, 5120, 12288, 1536, 160, 8, 1, 151552, 131072, 352.798),
    ("glm-4.6", 92, 3, 5120, 12288, 1536, 160, 8, 1, 151552, 202752, 352.798),
    ("glm-5", 78, 3, 6144, 12288, 2048, 256, 8, 1, 154880, 202752, 743.911),
    ("gpt-oss-120b", 36, 0, 2880, None, 2880, 128, 4, 0, 201088, 131072, 116.829),
    ("gpt-oss-20b", 24, 0, 2880, None, 2880, 32, 4, 0, 201088, 131072, 20.915),
    ("minimax-m2", 62, 0, 3072, None, 1536, 256, 8, 0, 200064, 196608, 228.690),
    ("minimax-m2.5", 62, 0, 3072, None, 1536, 256, 8, 0, 200064, 196608, 228.690),
    ("mixtral-8x7b", 32, 0, 4096, None, 14336, 8, 2, 0, 32000, 32768, 46.703),
    ("olmoe-1b-7b", 16, 0, 2048, None, 1024, 64, 8, 0, 50304, 4096, 6.919),
]

# Section 2: preset, active (no embedding), non-routed, routed active in billions; expert MB in bf16, Q8_0,
# int4 g32 and at the nominal 4.85 and 2.7 bits; cache bytes per token in bf16 (every layer seeing it);
# cache GB at 8K, 32K, 128K, 256K (None where the table has none).
K_EXPERT = (88.08, 46.79, 24.77, 26.70, 14.86)
# The facts print 26.45 and 14.00 for gpt-oss: bits times parameters, biases quantised too. They stay bf16.
OSS_EXPERT = (49.78, 26.46, 14.01, 15.09, 8.40)
SECTION_2 = [
    ("kimi-k2.6", 31.687, 11.722, 21.139, K_EXPERT, 70272, (0.576, 2.30, 9.21, 18.42)),
    ("deepseek-v3", 36.626, 17.118, 20.435, K_EXPERT, 70272, (0.576, 2.30, 9.21, 18.42)),
    ("deepseek-v2-lite", 2.451, 1.312, 1.350, (17.30, 9.19, 4.87, 5.24, 2.92), 31104, (0.255, 1.02, 4.08, None)),
    ("qwen3-235b-a22b", 21.568, 7.997, 14.194, (37.75, 20.05, 10.62, 11.44, 6.37), 192512, (1.58, 6.31, 25.2, None)),
    ("qwen3-30b-a3b", 3.042, 1.541, 1.812, (9.44, 5.01, 2.65, 2.86, 1.59), 98304, (0.81, 3.22, 12.9, None)),
    ("glm-4.6", 32.856, 16.834, 16.798, (47.19, 25.07, 13.27, 14.30, 7.96), 376832, (3.09, 12.3, 49.4, None)),
    ("glm-5", 40.833, 19.135, 22.649, (75.50, 40.11, 21.23, 22.89, 12.74), 89856, (0.74, 2.94, 11.8, None)),
    ("gpt-oss-120b", 5.133, 2.128, 3.584, OSS_EXPERT, 73728, (0.60, None, None, None)),
    ("gpt-oss-20b", 3.608, 1.798, 2.390, OSS_EXPERT, 49152, (0.40, None, None, None)),
    ("minimax-m2", 10.416, 4.009, 7.021, (28.31, 15.04, 7.96, 8.58, 4.78), 253952, (2.08, 8.32, 33.3, None)),
    ("mixtral-8x7b", 12.749, 1.606, 11.274, (352.3, 187.2, 99.1, 106.8, 59.5), 131072, (1.07, 4.29, None, None)),
    ("olmoe-1b-7b", 1.179, 0.477, 0.805, (12.58, 6.68, 3.54, 3.81, 2.12), 131072, (None, None, None, None)),
]


def rounds_to(value: float, printed: float) -> bool:
    """Does `value` round to what the table prints (its own digits, half a unit of the last, and a hair)."""
    text = str(printed)
    digits = len(text.partition(".")[2])
    return abs(value - printed) <= 0.5 * 10**-digits * 1.02


# --- facts ---


@pytest.mark.parametrize("row", SECTION_1, ids=lambda row: row[0])
def test_section_1(row):
    name, layers, dense, hidden, dense_ff, moe_ff, experts, top_k, shared, vocab, context, total = row
    spec = ModelSpec.preset(name)
    assert spec.num_hidden_layers == layers
    assert spec.model_layer_of_layer == list(range(dense, layers))
    assert spec.num_moe_layers == layers - dense
    assert (spec.hidden_size, spec.intermediate_size, spec.moe_intermediate_size) == (hidden, dense_ff, moe_ff)
    assert (spec.n_routed_experts, spec.num_experts_per_tok, spec.n_shared_experts) == (experts, top_k, shared)
    assert (spec.vocab_size, spec.max_position_embeddings) == (vocab, context)
    assert rounds_to(spec.total_params / 1e9, total)
    assert not spec.tie_word_embeddings


ROUTERS = {  # scoring, renormalised, scale, groups, bias
    "kimi-k2.6": ("sigmoid", True, 2.827, (1, 1), True),
    "deepseek-v3": ("sigmoid", True, 2.5, (8, 4), True),
    "deepseek-v3.2": ("sigmoid", True, 2.5, (8, 4), True),
    "deepseek-v2-lite": ("softmax", False, 1.0, (1, 1), False),
    "qwen3-235b-a22b": ("softmax", True, 1.0, (1, 1), False),
    "glm-4.6": ("sigmoid", True, 2.5, (1, 1), True),
    "glm-5": ("sigmoid", True, 2.5, (1, 1), True),
    "gpt-oss-120b": ("softmax_over_topk", True, 1.0, (1, 1), True),
    "minimax-m2": ("sigmoid", True, 1.0, (1, 1), True),
    "mixtral-8x7b": ("softmax", True, 1.0, (1, 1), False),
    "olmoe-1b-7b": ("softmax", False, 1.0, (1, 1), False),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_section_1_routers(name):
    spec = ModelSpec.preset(name)
    groups = (spec.n_group, spec.topk_group)
    got = (spec.scoring_func, spec.norm_topk_prob, spec.routed_scaling_factor, groups, spec.use_routing_bias)
    assert got == ROUTERS[name]


@pytest.mark.parametrize("row", SECTION_2, ids=lambda row: row[0])
def test_section_2(row):
    name, active, non_routed, routed_active, expert_mb, per_token, cache_gb = row
    spec = ModelSpec.preset(name)
    assert rounds_to(spec.active_params / 1e9, active)
    assert rounds_to(spec.non_routed_params / 1e9, non_routed)
    assert rounds_to(spec.routed_active_params / 1e9, routed_active)
    assert spec.active_params_with_embedding - spec.active_params == spec.vocab_size * spec.hidden_size
    sizes = [spec.expert_bytes(name) / 1e6 for name in ("bf16", "Q8_0", "int4_g32")]
    sizes += [spec.expert_params * bits / 8 / 1e6 for bits in (4.85, 2.7)]
    assert all(rounds_to(size, printed) for size, printed in zip(sizes, expert_mb, strict=True)), sizes
    cache = spec.memory(1, 1).bytes_of_part["kv_cache"]
    assert cache == per_token
    for context, printed in zip((8192, 32768, 131072, 262144), cache_gb, strict=True):
        # The table's last column is a ceiling for gpt-oss, so it is per_token * context for all.
        assert printed is None or rounds_to(per_token * context / 1e9, printed)
        if spec.layer_types is None:
            assert spec.memory(context, 1).bytes_of_part["kv_cache"] == per_token * context


def test_kimi_k26_sizes_of_section_2():
    spec = ModelSpec.preset("kimi-k2.6")
    assert spec.total_params == 1_026_408_232_448
    assert rounds_to(spec.weight_bytes("bf16") / 1e9, 2052.8)
    assert rounds_to(spec.weight_bytes("Q8_0") / 1e9, 1090.6)
    assert rounds_to(spec.weight_bytes() / 1e9, 594.2)
    rest = {part: "Q8_0" for part in PARTS if part != "routed_experts"}
    assert rounds_to(spec.weight_bytes(rest) / 1e9, 583.2)
    assert rounds_to(spec.kv_cache_bytes(262144, expanded=True) / 1e9, 655)
    assert rounds_to(ModelSpec.preset("deepseek-v3").kv_cache_bytes(262144, expanded=True) / 1e9, 1310)
    # unsloth PR#4757: 17.16 GiB at 256K; counting 61 MoE layers gives the report's 1.04 T
    assert rounds_to(spec.kv_cache_bytes(262144) / 2**30, 17.16)
    dense_to_moe = spec.n_routed_experts * spec.expert_params + spec.hidden_size * 384 + 384
    dense_to_moe += 3 * 7168 * 2048 - 3 * 7168 * 18432
    assert rounds_to((spec.total_params + dense_to_moe) / 1e9, 1042.97)


def test_published_checkpoint_sizes():
    """gpt-oss on disk: 60.8 and 12.8 GiB (model cards); the MXFP4 experts and the bf16 rest."""
    assert rounds_to(ModelSpec.preset("gpt-oss-120b").weight_bytes() / 2**30, 60.8)
    assert rounds_to(ModelSpec.preset("gpt-oss-20b").weight_bytes() / 2**30, 12.8)


def test_caches():
    oss = ModelSpec.preset("gpt-oss-120b")
    row = 2 * 8 * 64 * 2
    assert oss.kv_cache_bytes(8192, 3) == 3 * row * 18 * (8192 + 128)
    assert oss.kv_cache_bytes(100) == row * 36 * 100  # within the window nothing is saved
    glm = ModelSpec.preset("glm-5.2")
    assert glm.num_indexer_layers == 21
    assert glm.memory(1000, 2).bytes_of_part["indexer_keys"] == 2 * 21 * 1000 * 132
    kimi = ModelSpec.preset("kimi-k2.6")
    assert kimi.kv_cache_bytes(1000, format="Q8_0") == 61 * 1000 * 576 * 34 // 32
    assert kimi.kv_cache_bytes(0) == 0
    qwen = ModelSpec.preset("qwen3-30b-a3b")
    assert qwen.kv_cache_bytes(100, expanded=True) == qwen.kv_cache_bytes(100)
