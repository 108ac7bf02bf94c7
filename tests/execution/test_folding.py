"""Folding: distinct experts of a step stay distinct, and what fits is what memory allows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelab.domain.trace import NO_EXPERT
from moelab.execution.folding import Folding, fold_to_memory


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(8, 40), st.integers(2, 4))
def test_a_step_reads_as_many_distinct_experts_as_it_routed_to(seed, tokens, fits, top_k):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.choice(64, top_k, replace=False) for _ in range(tokens)]).astype(np.uint16)
    ids[rng.random(ids.shape) < 0.1] = NO_EXPERT
    folded = Folding(1, fits, "").fold(ids)
    routed = ids != NO_EXPERT
    np.testing.assert_array_equal(folded != NO_EXPERT, routed)
    pairs = {(int(a), int(b)) for a, b in zip(ids[routed], folded[routed], strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}), "one expert goes to one place"
    distinct = len(np.unique(ids[routed]))
    assert len({b for _, b in pairs}) == min(distinct, fits)
    if routed.any():
        assert folded[routed].max() < fits


def test_everything_fits():
    folding = fold_to_memory(6, 48, 100, 6 * 48 * 100, cache_bytes=10, min_experts=4)
    assert (folding.num_layers, folding.num_experts) == (6, 48)
    assert folding.text.startswith("none")


def test_layers_go_first():
    folding = fold_to_memory(6, 48, 100, 2 * 48 * 100 + 50, cache_bytes=10, min_experts=4)
    assert (folding.num_layers, folding.num_experts) == (2, 48)
    assert folding.text == "the first 2 of 6 layers run, 48 experts each"


def test_then_experts():
    folding = fold_to_memory(6, 48, 100, 2000, cache_bytes=10, min_experts=4)
    assert (folding.num_layers, folding.num_experts) == (1, 20)
    assert "48 experts folded onto 20" in folding.text


def test_a_trace_smaller_than_the_cache_is_refused():
    with pytest.raises(ValueError, match="choose a larger --expert-shape"):
        fold_to_memory(6, 48, 100, 10**6, cache_bytes=10_000, min_experts=4)


@pytest.mark.parametrize(("memory", "cache"), [(1000, 1000), (300, 1)])
def test_too_little_memory_says_how_much_is_expected(memory, cache):
    with pytest.raises(MemoryError, match=r"half of the free memory is .* expected at least"):
        fold_to_memory(6, 48, 100, memory, cache_bytes=cache, min_experts=4)
