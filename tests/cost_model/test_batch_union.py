"""batch_union: by hand, against plain sets, below uniform routing where tokens persist."""

import numpy as np
import pytest

from moelab.cost_model.batch_union import batch_union
from moelab.domain.trace import Phase
from tests.seeded_traces import seeded_trace, trace_of_sets


def test_by_hand():
    """{0,1} {1,2} {1,2}: pairs hold 3 and 2 experts."""
    frame = batch_union(trace_of_sets([[0, 1], [1, 2], [1, 2]], num_experts=4), (1, 2, 3))
    assert frame.distinct_experts.tolist() == [2, 2.5, 3]
    assert frame.windows.tolist() == [3, 2, 1]
    assert frame.uniform_routing.tolist() == [2, 3, 3.5]
    assert frame.times_one_token.tolist() == [1, 1.25, 1.5]


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_plain_sets(batch):
    trace = seeded_trace(4, batch=batch, unrouted=0.2)
    frame = batch_union(trace, (3,))
    sizes = []
    for request in range(4):
        rows = np.flatnonzero((trace.tokens.request == request) & (trace.tokens.phase == Phase.DECODE))
        for i in range(len(rows) - 2):
            for layer in range(3):
                ids = trace.experts[rows[i : i + 3], layer].ravel()
                sizes.append(len(set(ids.tolist()) - {65535}))
    assert frame.distinct_experts[0] == pytest.approx(np.mean(sizes))
    assert frame.windows[0] * 3 == len(sizes)


def test_refusals():
    trace = seeded_trace(4, decode_tokens=5)
    with pytest.raises(ValueError, match="no request has so many tokens"):
        batch_union(trace, (6,))
    with pytest.raises(ValueError, match="expected at least 1 token"):
        batch_union(trace, (0,))
