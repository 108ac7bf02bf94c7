"""choose draws what it says: Plackett-Luce without replacement, persistence, groups; checked against exact chances."""

import numpy as np
import pytest
from scipy.stats import chisquare

from moelab.synthetic.choose import NOISE, choose


def draws(score, *, num_tokens=60_000, top_k=1, persistence=0.0, num_groups=1, groups_kept=1, seed=1):
    """experts [T, K] where every token has the same score [E]."""
    experts, chosen = np.zeros((num_tokens, top_k), np.uint16), np.zeros((num_tokens, top_k), np.float32)
    choose(
        np.zeros((num_tokens, 1), np.float32), np.asarray(score, np.float32), np.zeros((1, len(score)), np.float32),
        np.float32(persistence), num_groups, groups_kept, np.uint64(seed), NOISE, experts, chosen,
    )  # fmt: skip
    return experts.astype(int), chosen


def test_one_expert_is_a_softmax():
    score = np.array([0.0, 1.0, -1.0, 2.0, 0.5])
    chance = np.exp(score) / np.exp(score).sum()
    seen = np.bincount(draws(score)[0][:, 0], minlength=5)
    assert chisquare(seen, 60_000 * chance).pvalue > 1e-3


def test_two_experts_are_plackett_luce_in_order():
    score = np.array([0.3, -0.5, 1.2, 0.0])
    weight = np.exp(score)
    experts, chosen = draws(score, top_k=2)
    assert (experts[:, 0] != experts[:, 1]).all()
    assert (chosen[:, 0] >= chosen[:, 1]).all()
    seen, expected = [], []
    for a in range(4):
        for b in range(4):
            if a != b:
                seen.append(((experts[:, 0] == a) & (experts[:, 1] == b)).sum())
                expected.append(60_000 * weight[a] / weight.sum() * weight[b] / (weight.sum() - weight[a]))
    assert chisquare(seen, expected).pvalue > 1e-3


def test_rare_experts_come_from_the_true_tail():
    """An expert 14 below the other needs a Gumbel draw beyond the table's last quantile."""
    num = 4_000_000
    seen = (draws([14.0, 0.0], num_tokens=num)[0][:, 0] == 1).sum()
    expected = num / (1 + np.exp(14))
    assert abs(seen - expected) < 5 * expected**0.5 + 1
    assert seen > 0


def test_persistence_is_a_bonus_for_the_token_before():
    """A Markov chain over 4 equal experts: the last one keeps the chance e^p / (e^p + 3)."""
    experts = draws(np.zeros(4), persistence=1.5)[0][:, 0]
    kept = (experts[1:] == experts[:-1]).mean()
    assert kept == pytest.approx(np.exp(1.5) / (np.exp(1.5) + 3), abs=0.01)


def test_groups():
    """4 groups of 3, the best two by the sum of their two best: all experts of a token lie in two groups."""
    rng = np.random.default_rng(0)
    score = rng.normal(0, 1, 12)
    experts, _ = draws(score, num_tokens=5000, top_k=4, num_groups=4, groups_kept=2)
    groups = np.sort(experts // 3, axis=1)
    assert max(len(set(row)) for row in groups.tolist()) == 2
    assert all(len(set(row)) == 4 for row in experts.tolist())
    # Without noise to speak of, the kept groups are those with the largest sums of two.
    experts, _ = draws(score * 1e4, num_tokens=10, top_k=4, num_groups=4, groups_kept=2)
    sums = np.sort(score.reshape(4, 3), axis=1)[:, 1:].sum(1)
    kept = set(np.argsort(-sums)[:2].tolist())
    assert {e // 3 for e in experts.ravel().tolist()} <= kept
    allowed = [e for e in np.argsort(-score).tolist() if e // 3 in kept]
    assert experts[0].tolist() == allowed[:4]


def test_latents_move_the_score():
    latent = np.linspace(-2, 2, 40_000, dtype=np.float32)[:, None]
    experts, chosen = np.zeros((40_000, 1), np.uint16), np.zeros((40_000, 1), np.float32)
    direction = np.array([[1.0, -1.0]], np.float32)
    own = np.array([0.4, 0.0], np.float32)
    choose(latent, own, direction, np.float32(0), 1, 1, np.uint64(3), NOISE, experts, chosen)
    chance = 1 / (1 + np.exp(-(2 * latent[:, 0] + 0.4)))
    for part in np.array_split(np.arange(40_000), 8):
        assert (experts[part, 0] == 0).mean() == pytest.approx(chance[part].mean(), abs=0.025)
