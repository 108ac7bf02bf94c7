"""Logits of the engine, through our kernels, against transformers in float32 with eager experts."""

import numpy as np
import pytest
import torch

from moelab.engine import load
from tests.engine.tiny_models import PLAIN, YARN, hf_logits, save_hf, tiny_hf

TOLERANCE = 1e-5  # on logits of order 1; eps 1e-5 instead of 1e-6 in the latent norms alone would give 3e-5

CASES = {
    "plain": {},
    "yarn": {"rope_parameters": YARN},
    "yarn with equal mscales": {"rope_parameters": YARN | {"mscale_all_dim": 1.0}},
    "yarn without mscale": {"rope_parameters": {k: v for k, v in YARN.items() if not k.startswith("mscale")}},
    "yarn with attention_factor": {"rope_parameters": YARN | {"attention_factor": 1.3}},
    "rope in halves": {"rope_interleave": False, "rope_parameters": YARN},
    "q_lora null": {"q_lora_rank": None},
    "attention bias": {"attention_bias": True},
    "attention bias, q_lora null": {"attention_bias": True, "q_lora_rank": None},
    "groups": {"n_group": 4, "topk_group": 2},
    "three groups of four": {"n_group": 3, "topk_group": 1, "num_experts_per_tok": 4},
    "two shared experts": {"n_shared_experts": 2},
    "three shared experts": {"n_shared_experts": 3},
    "no dense layer": {"first_k_dense_replace": 0},
    "two dense layers": {"first_k_dense_replace": 2},
    "three dense layers": {"first_k_dense_replace": 3, "num_hidden_layers": 4},
    "odd sizes": {"hidden_size": 52, "moe_intermediate_size": 27, "intermediate_size": 41, "v_head_dim": 7},
    "wider than a tile": {"hidden_size": 70, "moe_intermediate_size": 65},
    "gate weights not normalised": {"norm_topk_prob": False},
    "one expert per token": {"num_experts_per_tok": 1},
    "every expert": {"num_experts_per_tok": 12},
    "tied embeddings": {"tie_word_embeddings": True},
    "small eps": {"rms_norm_eps": 1e-5},
}  # fmt: skip


def random_case(seed):
    draw = np.random.default_rng(seed)
    groups = int(draw.choice([1, 2, 4]))
    return {
        "hidden_size": int(draw.integers(20, 140)),
        "moe_intermediate_size": int(draw.integers(5, 80)),
        "intermediate_size": int(draw.integers(8, 90)),
        "num_attention_heads": int(draw.integers(1, 6)),
        "kv_lora_rank": int(draw.integers(4, 40)),
        "q_lora_rank": None if draw.random() < 0.3 else int(draw.integers(4, 40)),
        "qk_rope_head_dim": 2 * int(draw.integers(1, 9)),
        "qk_nope_head_dim": int(draw.integers(3, 20)),
        "v_head_dim": int(draw.integers(3, 20)),
        "n_routed_experts": groups * int(draw.integers(4, 9)),
        "n_group": groups,
        "topk_group": int(draw.integers(1, groups + 1)),
        "num_experts_per_tok": int(draw.integers(1, 5)),
        "n_shared_experts": int(draw.integers(1, 4)),
        "first_k_dense_replace": int(draw.integers(0, 4)),
        "num_hidden_layers": 4,
        "rope_interleave": bool(draw.random() < 0.6),
        "rope_parameters": YARN if draw.random() < 0.5 else PLAIN,
        "rms_norm_eps": float(draw.choice([1e-2, 1e-5])),
        "routed_scaling_factor": float(draw.uniform(0.5, 3)),
    }


def compare(changes, directory, seed=0, isa=None):
    model = tiny_hf(seed, **changes)
    token_ids = torch.randint(0, model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(seed))
    expected = hf_logits(model, token_ids)
    with load(save_hf(model, directory), isa=isa, num_workers=2) as engine:
        got = engine.forward(token_ids)
    assert engine.activation == "f32"
    assert engine.weight_format == "float32"
    # Logits are of order 1 here; where a draw makes them larger the bound grows with them.
    bound = TOLERANCE * max(1.0, float(expected.abs().max()) / 2)
    error = float((got - expected).abs().max())
    assert error <= bound, f"max |dlogit| {error:.2e} over {bound:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name, tmp_path):
    compare(CASES[name], tmp_path)


@pytest.mark.parametrize("seed", range(16))
def test_logits_equal_transformers_on_a_random_config(seed, tmp_path):
    compare(random_case(seed), tmp_path, seed=seed)


def test_logits_equal_transformers_at_long_positions(tmp_path):
    """Beyond the original context of yarn, through a grown cache and many chunks."""
    model = tiny_hf(3, rope_parameters=YARN)
    token_ids = torch.randint(0, 97, (300,), generator=torch.Generator().manual_seed(3))
    with load(save_hf(model, tmp_path)) as engine:
        got = engine.forward(token_ids)
    torch.testing.assert_close(got, hf_logits(model, token_ids), atol=TOLERANCE, rtol=0)


def test_exact_ties_between_equal_experts(tmp_path):
    """Experts in pairs with one router row: whichever of a pair is chosen, the output is the same."""
    model = tiny_hf(5, first_k_dense_replace=0, num_experts_per_tok=3)
    with torch.no_grad():
        for layer in model.model.layers:
            for tensor in (layer.mlp.gate.weight, layer.mlp.gate.e_score_correction_bias,
                           layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):  # fmt: skip
                tensor[1::2] = tensor[0::2]
    token_ids = torch.arange(60) % 97
    with load(save_hf(model, tmp_path)) as engine:
        seen = []
        engine.observers.append(lambda step, rows, ids, weights: seen.extend(ids))
        got = engine.forward(token_ids)
    torch.testing.assert_close(got, hf_logits(model, token_ids), atol=TOLERANCE, rtol=0)
    ids = np.concatenate(seen)
    assert (ids[:, 0] % 2 == 0).all()  # of a tied pair the lower id ranks first
    assert (ids[:, 1] == ids[:, 0] + 1).all()
    assert (ids[:, 2] % 2 == 0).all()
