"""What is written is read back bit for bit: whole, by row, phase, layer and chunk."""

import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moelab.domain.trace import NO_EXPERT, Phase, TokenTable, Trace
from moelab.store import TraceWriter, open_trace, save_trace, verify
from tests.store.recorded_rows import Rows, append, assert_equal, header, in_memory

EXTRA_SHAPES = {
    "residency": lambda h: (h.num_layers, h.top_k),
    "candidate_scores": lambda h: (h.num_layers, h.num_experts),
    "entropy": lambda h: (h.num_layers,),
    "hidden": lambda h: (h.num_layers + 3,),
    "nll": lambda h: (),
}


@st.composite
def traces(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    num_layers, top_k = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    num_experts = draw(st.integers(top_k, 400))
    num_tokens = draw(st.integers(0, 120))
    names = draw(st.sets(st.sampled_from(sorted(EXTRA_SHAPES)), max_size=3))
    rng = np.random.default_rng(seed)
    head = header(num_layers, num_experts, top_k)
    shape = (num_tokens, num_layers, top_k)
    experts = rng.integers(0, num_experts, shape).astype(np.uint16)
    experts[rng.random(shape) < draw(st.sampled_from([0.0, 0.2, 1.0]))] = NO_EXPERT
    gates = rng.integers(0, 0x7C00, shape).astype(np.uint16).view(np.float16)  # every finite value, subnormals too
    extras = {
        name: rng.random((num_tokens, *EXTRA_SHAPES[name](head))).astype(draw(st.sampled_from(["f2", "f4", "f8"])))
        for name in names
    }
    extras |= {"residency": (rng.random(shape) < 0.5).astype(np.uint8)} if "residency" in names else {}
    tokens = TokenTable.build(
        step=np.sort(rng.integers(0, 2**40, num_tokens)), request=rng.integers(0, 9, num_tokens),
        position=rng.integers(0, 2**31 - 1, num_tokens), phase=rng.integers(0, 2, num_tokens),
        domain=rng.integers(-1, 2, num_tokens), token_id=rng.integers(-1, 2**31 - 1, num_tokens),
    )  # fmt: skip
    return Trace(head, experts, gates, tokens, extras)


@pytest.fixture
def ram_folder():
    with in_memory() as folder:
        yield Path(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traces(), st.integers(9, 64), st.integers(5, 50), st.integers(3, 50))
def test_any_trace_in_any_batches(ram_folder, trace, segment_tokens, batch_tokens, chunk_tokens):
    folder = ram_folder / uuid.uuid4().hex
    with TraceWriter(folder, trace.header, segment_tokens) as writer:
        for start in range(0, trace.num_tokens, batch_tokens):
            append(writer, trace.take(slice(start, start + batch_tokens)))
        if trace.num_tokens:
            assert_equal(open_trace(folder).load(), trace)  # log and segments
    stored = open_trace(folder)
    assert stored.sealed
    assert stored.shape == trace.shape
    assert verify(folder).ok
    if trace.num_tokens:  # an empty recording cannot know its extras
        assert_equal(stored.load(), trace)
        chunks = list(stored.iter_chunks(chunk_tokens))
        assert [c.num_tokens for c in chunks[:-1]] == [chunk_tokens] * (len(chunks) - 1)
        for number, chunk in enumerate(chunks):
            assert_equal(chunk, trace.take(slice(number * chunk_tokens, (number + 1) * chunk_tokens)))


@pytest.fixture(scope="module")
def stored_and_trace(tmp_path_factory):
    """Four segments and a log, still open."""
    folder = tmp_path_factory.mktemp("parts") / "trace"
    rows = Rows(header(num_layers=5), seed=1)
    writer = TraceWriter(folder, rows.header, segment_tokens=64)
    for start in range(0, 300, 20):
        append(writer, rows.take(start, start + 20))
    yield open_trace(folder), rows.take(0, 300)
    writer.close()


def test_rows_of_every_kind(stored_and_trace):
    stored, trace = stored_and_trace
    mask = np.random.default_rng(2).random(300) < 0.3
    for rows in (slice(10, 250), slice(70, 75), slice(290, None), slice(5, 280, 7), slice(40, 40), mask,
                 np.flatnonzero(mask), [3, 64, 299], np.zeros(0, int)):  # fmt: skip
        taken = trace.take(np.asarray(rows, int) if isinstance(rows, list) else rows)
        assert_equal(stored.load(rows), taken)


def test_phase_layers_and_extras(stored_and_trace):
    stored, trace = stored_and_trace
    assert_equal(stored.load(phase=Phase.DECODE), trace.phase(Phase.DECODE))
    assert_equal(stored.load(slice(50, 200), phase=Phase.PREFILL), trace.take(slice(50, 200)).phase(Phase.PREFILL))
    part = stored.load(layers=[4, 1], extras=())
    assert part.header.model_layer_of_layer == (5, 2)
    assert part.extras == {}
    np.testing.assert_array_equal(part.experts, trace.experts[:, [4, 1]])
    np.testing.assert_array_equal(stored.load(layers=[2]).extras["residency"], trace.extras["residency"][:, [2]])
    np.testing.assert_array_equal(stored.tokens.token_id, trace.tokens.token_id)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"layers": [5]}, "layers"), ({"layers": []}, "layers"), ({"extras": ["scores"]}, "not stored"),
     ({"rows": [2, 1]}, "rise"), ({"rows": [300]}, "at most 299"), ({"rows": np.ones(3, bool)}, "mask")],
)  # fmt: skip
def test_what_is_not_there(stored_and_trace, arguments, message):
    with pytest.raises(ValueError, match=message):
        stored_and_trace[0].load(**arguments)


def test_xarray_is_lazy_and_equal(stored_and_trace):
    stored, trace = stored_and_trace
    dataset = stored.to_xarray()
    assert dataset.experts.dims == ("token", "layer", "slot")
    assert dataset.experts.chunks is not None
    np.testing.assert_array_equal(dataset.experts.values, trace.experts)
    np.testing.assert_array_equal(dataset.gate_weights.isel(layer=3).values, trace.gate_weights[:, 3])
    decode = dataset.experts.isel(token=dataset.phase.values == Phase.DECODE, layer=2)
    np.testing.assert_array_equal(decode.values, trace.phase(Phase.DECODE).experts[:, 2])


def test_frame_and_what_it_shows(stored_and_trace):
    stored, trace = stored_and_trace
    frame = stored.to_frame(layers=[0])
    assert len(frame) == (trace.experts[:, 0] != NO_EXPERT).sum()
    assert "tokens in the log" in repr(stored)
    assert "<table>" in stored._repr_html_()


def test_empty_recording(tmp_path):
    with TraceWriter(tmp_path / "empty", header()):
        pass
    stored = open_trace(tmp_path / "empty")
    assert stored.load().num_tokens == 0
    assert stored.to_xarray().sizes["token"] == 0
    assert list(stored.iter_chunks()) == []


def test_save_trace_refuses_a_folder_that_holds_one(tmp_path):
    trace = Rows(header(), seed=3).take(0, 100)
    save_trace(trace, tmp_path / "saved", segment_tokens=32)
    assert_equal(open_trace(tmp_path / "saved").load(), trace)
    with pytest.raises(ValueError, match="100 recorded tokens"):
        save_trace(trace, tmp_path / "saved")
