"""Steps: whole forward passes, in trace order, spread over the trace."""

import numpy as np
import pytest

from moelab.domain.trace import NO_EXPERT, Phase, TokenTable, Trace, TraceHeader
from moelab.execution.steps import distinct_experts, take_steps


@pytest.fixture
def trace():
    """40 steps of 1 to 3 tokens."""
    sizes = np.random.default_rng(5).integers(1, 4, 40)
    step = np.repeat(np.arange(40), sizes)
    header = TraceHeader(
        model="toy", model_type="x", num_layers=1, num_experts=4, top_k=1, model_layer_of_layer=(0,), expert_bytes=(1,),
        engine="test", quantization="none", licence="CC0-1.0", provenance="test", synthetic=True,
    )  # fmt: skip
    tokens = TokenTable.build(step=step, request=0, position=np.arange(len(step)), phase=int(Phase.DECODE))
    shape = (len(step), 1, 1)
    return Trace(header, np.zeros(shape, np.uint16), np.ones(shape, np.float16), tokens)


def test_all_steps_are_the_trace(trace):
    steps = take_steps(trace, None)
    assert len(steps) == 40
    np.testing.assert_array_equal(steps.rows, np.arange(trace.num_tokens))


@pytest.mark.parametrize("num_tokens", [1, 7, 33, 60])
def test_taken_steps_are_whole_and_in_order(trace, num_tokens):
    steps = take_steps(trace, num_tokens)
    assert (np.diff(steps.rows) > 0).all()
    for i in range(len(steps)):
        rows = steps.rows_of(i)
        step = trace.tokens.step[rows]
        assert (step == step[0]).all()
        assert len(rows) == (trace.tokens.step == step[0]).sum()
    assert abs(steps.num_tokens - num_tokens) <= 0.5 * num_tokens + 3


def test_distinct_experts_leave_unrouted_slots_out():
    ids = np.array([[3, NO_EXPERT], [1, 3]], np.uint16)
    np.testing.assert_array_equal(distinct_experts(ids), [1, 3])
