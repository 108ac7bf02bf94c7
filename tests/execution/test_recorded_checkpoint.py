"""Replay with own weights runs the weights that were recorded, or says by name that they are others."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

import moelab
from moelab.domain.trace import Phase, TraceHeader
from moelab.execution.recorded_checkpoint import recorded_checkpoint

NANO = moelab.shipped("nano/model")


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    """nano with one router moved a little: the same config, names and shapes."""
    folder = tmp_path_factory.mktemp("retrained") / "model"
    shutil.copytree(NANO, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("mlp.gate.weight"))
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def trace():
    """Recorded now, so that its header has the field."""
    with moelab.load(NANO) as engine:
        with moelab.record(engine) as trace:
            engine.generate("A few words", 6, stop=())
        assert trace.header.weights_fingerprint == engine.weights_fingerprint
    return trace


def test_retrained_weights_are_refused_by_name(trace, retrained):
    assert recorded_checkpoint(trace.header, NANO) == (NANO, "")
    with pytest.raises(
        ValueError, match=r"with weights [0-9a-f]{16}; checkpoint .* has weights [0-9a-f]{16}: give the"
    ):
        moelab.replay(trace, model_dir=retrained, expert_shape="own", progress=False)


def test_nano_that_ships_is_left_out_for_a_trace_of_other_weights(trace):
    header = trace.header.model_copy(update={"weights_fingerprint": "0" * 16})
    found, why = recorded_checkpoint(header, None)
    assert found is None
    assert "with weights 0000000000000000" in why


def test_old_traces_load_and_are_checked_by_shape(retrained):
    trace = moelab.open_trace(moelab.shipped("nano/capture")).load(phase=Phase.DECODE)
    assert trace.header.weights_fingerprint is None
    assert recorded_checkpoint(trace.header, None) == (NANO, "")
    assert recorded_checkpoint(trace.header, retrained) == (retrained, "")
    old = trace.header.model_dump()
    del old["weights_fingerprint"]
    assert TraceHeader.model_validate(old) == trace.header
    other = trace.header.model_copy(update={"num_experts": 64})
    with pytest.raises(ValueError, match=r"trace is of nano \(6 x 64\); checkpoint .* has 6 x 48"):
        recorded_checkpoint(other, NANO)
    stranger = trace.header.model_copy(update={"model": "stranger"})
    assert recorded_checkpoint(stranger, None) == (None, "no checkpoint of stranger is known")


def test_fingerprint_of_a_trace_does_not_depend_on_the_field(trace):
    """Plans made on a trace find it again after its header was given the field."""
    import dataclasses

    without = dataclasses.replace(trace, header=trace.header.model_copy(update={"weights_fingerprint": None}))
    assert without.fingerprint() == trace.fingerprint()
