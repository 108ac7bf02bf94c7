"""popularity by hand and against plain counting."""

import numpy as np
import pytest

from moelab.analysis import popularity
from moelab.analysis.popularity import normalised_entropy, share_of_hottest
from tests.seeded_traces import seeded_trace


def test_shares_and_entropy_by_hand():
    loads = np.array([[6, 2, 1, 1, 0, 0, 0, 0, 0, 0]])
    assert share_of_hottest(loads, 0.10).tolist() == [0.6]
    assert share_of_hottest(loads, 0.20).tolist() == [0.8]
    assert share_of_hottest(loads, 0.50).tolist() == [1.0]
    assert normalised_entropy(np.full((1, 8), 3)) == pytest.approx(1)
    assert normalised_entropy(np.array([[5, 0, 0, 0]])) == pytest.approx(0)
    assert normalised_entropy(np.array([[1, 1, 0, 0]])) == pytest.approx(0.5)
    assert np.isnan(normalised_entropy(np.zeros((1, 4)))).all()


def test_domains_add_up_to_all():
    trace = seeded_trace(3, unrouted=0.2)
    result = popularity(trace)
    assert result.domains == ("all", "even", "odd")
    assert np.array_equal(result.loads[0], result.loads[1] + result.loads[2])
    assert result.num_tokens.tolist() == [
        trace.num_tokens,
        (trace.tokens.domain == 0).sum(),
        (trace.tokens.domain == 1).sum(),
    ]
    assert result.num_requests.tolist() == [4, 2, 2]
    for layer in range(3):
        counts = {}
        for expert in trace.experts[:, layer].ravel().tolist():
            if expert != 65535:
                counts[expert] = counts.get(expert, 0) + 1
        top = sorted(counts.values(), reverse=True)
        assert result.shares[0, layer, 3] == pytest.approx(sum(top[:6]) / sum(top))


def test_shows_itself_and_says_synthetic():
    result = popularity(seeded_trace(3))
    frame = result.to_frame()
    assert len(frame) == 3 * 3
    assert set(frame.routing) == {"synthetic"}
    assert "share_of_top_20%" in frame
    assert "<table" in result._repr_html_()
