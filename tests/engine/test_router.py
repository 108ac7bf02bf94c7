"""The router alone: the tie rule, groups, and rank order, against a naive Python twin."""

import numpy as np
import pytest
import torch

from moelab.engine.dense import TorchLinear
from moelab.engine.router import Router, ranked
from moelab.kernels import isa_table
from moelab.kernels.ops import Ops


def naive(logits, bias, k, n_group, topk_group):
    """Expert ids of one token by sorting on (score, lower id)."""
    scores = 1 / (1 + np.exp(-logits.astype(np.float32))) + bias
    size = len(scores) // n_group
    order = {g: sorted(scores[g * size : (g + 1) * size])[-2:] for g in range(n_group)}
    groups = sorted(range(n_group), key=lambda g: (-sum(np.float32(s) for s in reversed(order[g])), g))[:topk_group]
    allowed = [e for g in groups for e in range(g * size, (g + 1) * size)]
    return sorted(allowed, key=lambda e: (-scores[e], e))[:k]


@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (2, 1)])
def test_routes_as_the_naive_twin(n_group, topk_group):
    draw = np.random.default_rng(n_group)
    # Few distinct, exactly representable scores, so ties are everywhere: logits 0 and bias in quarters.
    bias = draw.integers(-4, 5, 16).astype(np.float32) / 4
    router = Router(TorchLinear(torch.zeros(16, 8), None), torch.from_numpy(bias), 4, n_group, topk_group, True, 2.0)
    ids, weights = router(torch.randn(5, 8))
    expected = naive(np.zeros(16), bias, 4, n_group, topk_group)
    assert ids.tolist() == [expected] * 5
    torch.testing.assert_close(weights, torch.full((5, 4), 0.5))


def test_ties_go_to_the_lower_id_in_rows_of_any_length():
    for size in (2, 7, 48, 384):
        assert ranked(torch.zeros(3, size), min(size, 5)).tolist() == [list(range(min(size, 5)))] * 3


def test_bias_chooses_but_does_not_weigh():
    bias = torch.tensor([0.0, 0.0, 5.0, 4.0])
    router = Router(TorchLinear(torch.eye(4), None), bias, 2, 1, 1, False, 1.0)
    ids, weights = router(torch.tensor([[3.0, 2.0, -1.0, 1.0]]))
    assert ids.tolist() == [[2, 3]]
    torch.testing.assert_close(weights, torch.tensor([[-1.0, 1.0]]).sigmoid())


NATIVE = any(row.built for row in isa_table() if row.isa != "numba")


@pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
@pytest.mark.parametrize("seed", range(20))
def test_the_native_router_is_the_same(seed):
    """Ties everywhere in half of the draws; gate weights as torch computes them."""
    draw = np.random.default_rng(seed)
    n_group = int(draw.integers(1, 5))
    num_experts, num_tokens = n_group * int(draw.integers(4, 9)), int(draw.integers(1, 6))
    k, topk_group = int(draw.integers(1, 5)), int(draw.integers(1, n_group + 1))
    logits = draw.standard_normal((num_tokens, num_experts)).astype(np.float32)
    bias = (draw.standard_normal(num_experts) / 10).astype(np.float32)
    if seed % 2:
        logits, bias = np.zeros_like(logits), np.round(40 * bias).astype(np.float32) / 4
    router = Router(lambda x: x, torch.from_numpy(bias), k, n_group, topk_group, bool(seed % 3), 1.7)
    expected_ids, expected_weights = router(torch.from_numpy(logits))
    ops = Ops(num_tokens, "generic")
    ids, weights = np.zeros((num_tokens, k), np.int32), np.zeros((num_tokens, k), np.float32)
    scores = np.full_like(logits, -7)
    ops.route(logits, bias, ids, weights, n_group, topk_group, bool(seed % 3), 1.7, scores)
    ops.run(None)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-6)
    np.testing.assert_array_equal(ids, expected_ids.numpy())
    np.testing.assert_allclose(weights, expected_weights.numpy(), rtol=1e-6)
    assert ids[0].tolist() == naive(logits[0], bias, k, n_group, topk_group)
