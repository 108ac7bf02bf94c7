"""nano, the trained model that ships: greedy text against transformers, sound text, streaming."""

import pytest

from moelab.bench.parity import EPSILON, compare, parity, teacher, transformers_twin
from moelab.engine import load
from moelab.engine.prompts import read_prompts
from moelab.engine.text import TextStream
from moelab.kernels import choose_isa, isa_table
from moelab.store import shipped

NANO = shipped("nano/model").parent
PROMPTS = read_prompts(NANO / "prompts.jsonl")


@pytest.fixture(scope="module")
def engine():
    with load(NANO / "model", activation="bf16", dense_dtype="float32") as engine:
        yield engine


def test_greedy_text_is_that_of_transformers(engine):
    row = compare(engine, teacher(transformers_twin(NANO / "model")), PROMPTS[:: len(PROMPTS) // 5][:5], 100)
    assert row.num_tokens == 100
    assert row.num_unexplained == 0, f"{row} beyond a margin of {EPSILON['bf16', None]}"
    assert row.num_different <= 3
    assert row.median_logit_error < 0.01


@pytest.mark.skipif(choose_isa().isa == "numba", reason="native kernels are not built")
def test_int8_linear_layers_choose_other_tokens_in_near_ties_only():
    """A row of the bench at a small size: the mode reaches the engine, and stands in the row."""
    (row,) = parity(NANO / "model", NANO / "prompts.jsonl", 40, [("int8", "int8")], num_prompts=4)
    assert (row.activation, row.dense_weights, row.num_tokens) == ("int8", "int8", 40)
    assert row.num_unexplained == 0, f"{row} beyond a margin of {row.epsilon}"
    assert 0.02 < row.median_logit_error < 1  # other arithmetic than of the other modes


def test_engine_of_nano_says_what_it_is(engine):
    assert (engine.weight_format, engine.activation) == ("int4_g32", "bf16")
    assert engine.spec.model_layer_of_layer == [1, 2, 3, 4, 5, 6]
    assert engine.num_skipped_tensors == {}
    assert "int4_g32" in repr(engine)
    assert "tokenizer.json" in engine._repr_html_()


@pytest.mark.parametrize("isa", [row.isa for row in isa_table() if row.supported and row.isa != "amx"])
def test_results_name_what_carries_mode_bf16(isa):
    """Integers of 16 bits on native kernels, Numba's own bf16; int8 is what it says."""
    carried = "bf16" if isa == "numba" else "int16"
    with load(NANO / "model", activation="bf16", isa=isa) as engine:
        result = engine.generate([5, 6], 2, stop=())
        assert (result.activation, result.carried, engine.carried) == ("bf16", carried, carried)
        for text in (repr(engine), repr(result)):
            assert ("bf16 (carried as int16)" in text or "bf16 activations (carried as int16)" in text) == (
                carried == "int16"
            )
    with load(NANO / "model", activation="int8", isa=isa) as engine:
        assert engine.carried == "int8"
        assert "carried" not in repr(engine)


def test_streamed_text_is_the_text(engine):
    for prompt in PROMPTS[:: len(PROMPTS) // 4][:4]:
        pieces = list(engine.stream(prompt.prompt, 24, stop=()))
        whole = engine.generate(prompt.prompt, 24, stop=())
        assert [token for token, _ in pieces] == list(whole.token_ids)
        assert "".join(piece for _, piece in pieces) == whole.text


def test_characters_of_many_bytes_are_held_back_until_they_are_whole(engine):
    text = "код, 日本語, naïve 🙂 end"
    stream = TextStream(engine.codec)
    pieces = [stream.push(token) for token in engine.codec.encode(text)]
    assert "".join(pieces) + stream.rest() == engine.codec.decode(engine.codec.encode(text))
    assert not any("\ufffd" in piece for piece in pieces)
