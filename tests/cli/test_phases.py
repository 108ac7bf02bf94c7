"""--phase: steps with tokens of both phases are a phase of their own, and what is left out is said."""

import numpy as np
import pytest

from moelab.cli.trace_arguments import check_phase, check_step_phase
from moelab.domain.trace import Phase, Trace
from moelab.policies.requests import Requests
from tests.seeded_traces import seeded_trace


def batched() -> Trace:
    """Continuous batching: the prefill of the second request is in the third decode step of the first."""
    one = seeded_trace(1, num_requests=2, prefill_tokens=4, decode_tokens=6)
    tokens = one.tokens
    second = tokens.request == 1
    step = tokens.step.copy()
    step[second] = step[second] - step[second].min() + 3
    order = np.argsort(step, kind="stable")
    table = type(tokens)(**{name: value[order] for name, value in (vars(tokens) | {"step": step}).items()})
    return Trace(one.header, one.experts[order], one.gate_weights[order], table)


def test_mixed_steps_are_counted_apart_and_said(capsys):
    trace = batched()
    requests = Requests.of_trace(trace)
    assert requests.steps_of_phase("mixed").sum() == 1
    assert check_step_phase(trace, "mixed") == "mixed"
    assert check_step_phase(trace, "all") is None
    assert capsys.readouterr().err == ""
    assert check_step_phase(trace, "decode") == "decode"
    assert "1 of 12 decode tokens lie in steps with tokens of both phases" in capsys.readouterr().err
    assert check_step_phase(trace, "prefill") == "prefill"
    assert "4 of 8 prefill tokens" in capsys.readouterr().err


def test_refusals():
    trace = seeded_trace(1)
    with pytest.raises(ValueError, match="has no mixed steps: choose another --phase"):
        check_step_phase(trace, "mixed")
    decode = trace.phase(Phase.DECODE)
    for check, what in ((check_phase, "tokens"), (check_step_phase, "steps")):
        assert check(decode, "decode") == "decode"
        with pytest.raises(ValueError, match=f"has no prefill {what}"):
            check(decode, "prefill")
