"""Recipes: published file sizes, an independent count, and additive properties; the MTP layer."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.model import ModelSpec, presets
from moelab.domain.weight_formats import WEIGHT_FORMATS
from moelab.sizing.mtp import mtp_params
from moelab.sizing.recipes import RECIPES, recipe, use_more_bits, weight_bytes_of_recipe

EXACT = [name for name in presets() if ModelSpec.preset(name).sizes_exact]

# (preset, recipe, published bytes, tolerance): unsloth's and ubergarm's model pages; facts sections 2 and 3.
PUBLISHED = [
    ("kimi-k2-instruct", "Q4_K_M", 578.57 * 2**30, 0.002),
    ("kimi-k2-thinking", "UD-Q4_K_XL", 543.617 * 2**30, 0.002),
    ("kimi-k2.6", "UD-Q4_K_XL", 584.5e9, 0.004),
    ("kimi-k2.6", "UD-Q8_K_XL", 595e9, 0.002),
    ("kimi-k2.6", "UD-Q2_K_XL", 340e9, 0.002),
    ("kimi-k2.6", "native", 594.2e9, 0.0002),
    ("kimi-k2.6", "bf16", 2052.8e9, 0.0002),
    ("kimi-k2.6", "Q8_0", 1090.6e9, 0.0002),
]


@pytest.mark.parametrize(("model", "name", "published", "tolerance"), PUBLISHED)
def test_published_file_sizes(model, name, published, tolerance):
    assert recipe(name).weight_bytes(ModelSpec.preset(model)) == pytest.approx(published, rel=tolerance)


def test_more_bits_by_hand():
    """61 layers: 0 to 6, 53 to 60, and every third between."""
    picked = [layer for layer in range(61) if use_more_bits(layer, 61)]
    assert picked == [*range(7), *range(9, 53, 3), *range(53, 61)]
    assert [layer for layer in range(8) if use_more_bits(layer, 8)] == [0, 3, 6, 7]


def test_q4_k_m_counted_layer_by_layer():
    """An independent loop over layers of DeepSeek-V3's experts: gate and up Q4_K, down Q4_K or Q6_K."""
    spec = ModelSpec.preset("deepseek-v3")
    q4, q6 = 144 / 256, 210 / 256
    expected = 0.0
    for layer in range(3, 61):
        more = layer < 7 or layer >= 53 or (layer - 7) % 3 == 2
        expected += 256 * 7168 * 2048 * (2 * q4 + (q6 if more else q4))
    assert RECIPES["Q4_K_M"].bytes_of_part(spec)["routed_experts"] == expected


def test_rows_that_are_no_multiple_of_256_fall_back():
    """DeepSeek-V2-Lite: down_proj has 1,408 columns; Q4_K and Q6_K cannot hold them, Q5_0 and Q8_0 can."""
    spec = ModelSpec.preset("deepseek-v2-lite")
    sizes = RECIPES["Q4_K_M"].bytes_of_part(spec)
    more = sum(use_more_bits(layer, 27) for layer in range(1, 27))
    params = 1408 * 2048
    down = 64 * params * (more * 34 / 32 + (26 - more) * 22 / 32)
    assert sizes["routed_experts"] == 26 * 64 * 2 * params * 144 / 256 + down


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EXACT), st.sampled_from(list(RECIPES)))
def test_bytes_are_additive_and_between_formats(name, recipe_name):
    spec = ModelSpec.preset(name)
    one = RECIPES[recipe_name]
    if recipe_name in ("UD-Q4_K_XL", "UD-Q8_K_XL") and spec.native_formats["routed_experts"] != "int4_g32":
        with pytest.raises(ValueError, match="released in int4"):
            one.bytes_of_part(spec)
        return
    sizes = one.bytes_of_part(spec)
    assert set(sizes) == set(spec.params_of_part)
    assert sum(sizes.values()) == one.weight_bytes(spec) == weight_bytes_of_recipe(spec)[recipe_name]
    assert one.expert_bytes(spec) * spec.num_moe_layers * spec.n_routed_experts == pytest.approx(
        sizes["routed_experts"], rel=1e-12
    )
    assert spec.total_params / 4 < one.weight_bytes(spec) <= 2.01 * spec.total_params


def test_smaller_formats_are_smaller():
    spec = ModelSpec.preset("kimi-k2.6")
    sizes = weight_bytes_of_recipe(spec)
    order = ["UD-Q2_K_XL", "mxfp4", "UD-Q4_K_XL", "native", "Q4_K_M", "fp8", "int8", "bf16"]
    assert [sizes[name] for name in order] == sorted(sizes[name] for name in order)
    assert sizes["int4"] == sizes["native"]


def test_a_weight_format_is_a_recipe_and_others_are_refused():
    spec = ModelSpec.preset("qwen3-30b-a3b")
    name = random.Random(5).choice(sorted(WEIGHT_FORMATS))
    assert recipe(name).weight_bytes(spec) == spec.weight_bytes(name)
    with pytest.raises(ValueError, match=r"format: expected one of native.*got 'Q9'"):
        recipe("Q9")
    with pytest.raises(ValueError, match="released in int4_g32, got fp8"):
        recipe("UD-Q8_K_XL").weight_bytes(ModelSpec.preset("deepseek-v3"))
    with pytest.raises(ValueError, match="expected a model whose tensors are all known"):
        weight_bytes_of_recipe(ModelSpec.preset("kimi-k3"))


def test_mtp_layers():
    """684.5 B on disk (facts section 1, ggufit's catalogue); none in K2; GLM's layout is not known."""
    spec = ModelSpec.preset("deepseek-v3")
    assert (spec.total_params + mtp_params(spec)) / 1e9 == pytest.approx(684.5, abs=0.05)
    by_hand = 257 * 3 * 7168 * 2048 + 256 * 7168 + 256  # experts, router and its bias
    by_hand += 7168 * 1536 + 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 7168
    by_hand += 5 * 7168 + 2 * 7168 * 7168 + 2 * 129280 * 7168
    assert mtp_params(spec) == by_hand
    assert mtp_params(ModelSpec.preset("kimi-k2.6")) == 0
    with pytest.raises(ValueError, match=r"num_nextn_predict_layers of glm-4\.6"):
        mtp_params(ModelSpec.preset("glm-4.6"))
