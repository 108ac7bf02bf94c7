"""The native decode step against transformers in float32, token by token, and against the engine's own torch path."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

import moelab
from moelab.domain.trace import Phase
from moelab.engine import load
from moelab.engine.decode_program import NATIVE_TOKENS
from moelab.engine.sampling import Sampling
from moelab.kernels import isa_table
from tests.engine.test_hf_parity import CASES, TOLERANCE, random_case
from tests.engine.tiny_models import YARN, hf_logits, save_hf, tiny_hf

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa not in ("numba", "amx")]
pytestmark = pytest.mark.skipif(not NATIVE, reason="native kernels are not built")


def decode(engine, rows):
    """Logits [B, Q, vocab] of rows [B, Q], fed one token at a time, and the native programs by number of rows."""
    cache = engine.new_cache(len(rows))
    sequences = [engine.new_sequence(row.tolist(), 1, Sampling(), ()) for row in rows]
    logits = [engine.step(rows[:, q : q + 1], cache, 0, sequences, Phase.DECODE, "last") for q in range(rows.shape[1])]
    return torch.cat(logits, dim=1), engine.model._programs


def compare(changes, directory, seed=0, isa=None, batch=1, length=12):
    model = tiny_hf(seed, **changes)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)
    with torch.no_grad():
        expected = model(rows).logits
    with load(save_hf(model, directory), isa=isa, num_workers=2, dense_weights="float32") as engine:
        got, programs = decode(engine, rows)
        assert list(programs) == [batch]
        programs[batch].pool = engine.pool  # tiny steps would run on the caller alone
        again, _ = decode(engine, rows)
    assert torch.equal(got, again)  # no bit depends on the workers
    bound = TOLERANCE * max(1.0, float(expected.abs().max()) / 2)
    assert float((got - expected).abs().max()) <= bound


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name, tmp_path):
    compare(CASES[name], tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_logits_equal_transformers_on_a_random_config(seed, tmp_path):
    compare(random_case(seed), tmp_path, seed=seed, isa=NATIVE[seed % len(NATIVE)], batch=1 + seed % 3)


@pytest.mark.parametrize("isa", NATIVE)
def test_long_contexts_are_cut_into_chunks(isa, tmp_path):
    """600 positions are three chunks; transformers sees them at once."""
    model = tiny_hf(3, rope_parameters=YARN, max_position_embeddings=1024)
    tokens = torch.randint(0, 97, (600,), generator=torch.Generator().manual_seed(3))
    expected = hf_logits(model, tokens)
    with load(save_hf(model, tmp_path), isa=isa, dense_weights="float32") as engine:
        cache = engine.new_cache(1)
        sequence = engine.new_sequence(tokens.tolist(), 1, Sampling(), ())
        engine.step(tokens[None, :590], cache, 0, [sequence], Phase.PREFILL, "none")
        for q in range(590, 600):
            got = engine.step(tokens[None, q : q + 1], cache, 0, [sequence], Phase.DECODE, "last")
            torch.testing.assert_close(got[0, 0], expected[q], atol=TOLERANCE, rtol=0)


def test_rows_of_different_lengths_do_not_see_each_other(tmp_path):
    model = tiny_hf(4)
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(0, 97, (length,), generator=generator) for length in (3, 270, 41)]
    following = torch.randint(0, 97, (3, 1), generator=generator)
    with load(save_hf(model, tmp_path), dense_weights="float32") as engine:
        cache = engine.new_cache(3)
        sequences = [engine.new_sequence(prompt.tolist(), 1, Sampling(), ()) for prompt in prompts]
        for row, prompt in enumerate(prompts):
            engine.step(prompt[None], cache, row, [sequences[row]], Phase.PREFILL, "none")
        got = engine.step(following, cache, 0, sequences, Phase.DECODE, "last")
    for row, prompt in enumerate(prompts):
        expected = hf_logits(model, torch.cat((prompt, following[row])))[-1]
        torch.testing.assert_close(got[row, 0], expected, atol=TOLERANCE, rtol=0)


def test_a_shorter_context_may_have_more_chunks(tmp_path):
    """8,192 positions are 32 chunks, 8,193 are 17 longer ones; both in one step, beside torch on the same latents."""
    lengths = (8191, 8192)
    folder = save_hf(tiny_hf(9, max_position_embeddings=16384), tmp_path)
    logits = []
    for dense_weights in ("float32", "torch"):
        with load(folder, dense_weights=dense_weights) as engine:
            cache = engine.new_cache(2)
            cache.reserve(max(lengths) + 1)
            generator = torch.Generator().manual_seed(9)
            for memory in cache.layers:
                memory.normal_(generator=generator)
            cache.lengths[:] = lengths
            sequences = [engine.new_sequence([1], 1, Sampling(), ()) for _ in lengths]
            logits.append(engine.step(torch.tensor([[5], [7]]), cache, 0, sequences, Phase.DECODE, "last"))
    torch.testing.assert_close(logits[0], logits[1], atol=TOLERANCE, rtol=0)


def test_programs_are_made_once_and_share_their_memory(tmp_path):
    """Batches that shrink and grow: the same programs, a fresh engine's logits, below twice the largest's memory."""
    folder = save_hf(tiny_hf(2), tmp_path)
    sizes = (7, 3, 8, 1, 5, 2, 6, 4)
    rows = torch.randint(0, 97, (8, 2), generator=torch.Generator().manual_seed(2))
    with load(folder, dense_weights="float32") as engine:
        first = {size: decode(engine, rows[:size])[0] for size in sizes}
        programs = dict(engine.model._programs)
        num_bytes = engine.model.step_memory.num_bytes
        again = {size: decode(engine, rows[:size])[0] for size in reversed(sizes)}
        assert {size: engine.model._programs[size] for size in programs} == programs
        assert engine.model.last_program is programs[sizes[0]]
        assert engine.model.step_memory.num_bytes <= num_bytes
        assert f"{engine.model.step_memory.num_bytes / 2**20:.1f} MiB" in repr(engine)
    for size in sizes:
        assert torch.equal(first[size], again[size])
    for size in (8, 3):
        with load(folder, dense_weights="float32") as engine:
            assert torch.equal(decode(engine, rows[:size])[0], first[size])
            if size == 8:
                assert num_bytes < 2 * engine.model.step_memory.num_bytes


@pytest.mark.parametrize("dense_weights", ["float32", "torch"])
def test_a_router_of_nan_is_refused_by_layer_and_row(dense_weights, tmp_path):
    """A token whose embedding holds a NaN, in the middle of a batch; the engine goes on with other tokens."""
    with load(save_hf(tiny_hf(2), tmp_path), dense_weights=dense_weights) as engine:
        first_moe = engine.spec.model_layer_of_layer[0]
        engine.model.embed_tokens = engine.model.embed_tokens.clone()
        good = decode(engine, torch.tensor([[5], [6], [8]]))[0]
        engine.model.embed_tokens[7, 0] = float("nan")
        for program in engine.model._programs.values():
            program._embed_tokens = engine.model.embed_tokens
        expected = rf"^layer {first_moe} router: expected numbers as logits; got NaN for row 1 of the step"
        for _ in range(2):
            with pytest.raises(FloatingPointError, match=expected):
                decode(engine, torch.tensor([[5], [7], [8]]))
        assert torch.equal(decode(engine, torch.tensor([[5], [6], [8]]))[0], good)


def test_a_dropped_engine_gives_its_weights_back_at_once(tmp_path):
    """Without a garbage collection: no object of it is part of a cycle."""
    engine = load(save_hf(tiny_hf(2), tmp_path), dense_weights="float32")
    decode(engine, torch.ones((2, 3), dtype=torch.int64))
    engine.generate([1, 2, 3], 2, stop=())
    gc.collect()
    gc.disable()
    try:
        weights = [engine.model, engine.model.lm_head.packed, engine.routed[0].owner, engine.model.last_program]
        alive = [weakref.ref(kept) for kept in weights]
        del weights
        engine.close()
        del engine
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("dense_dtype", ["float32", "bfloat16"])
def test_same_text_and_routing_as_by_torch(dense_dtype):
    """nano: greedy tokens, and what an observer sees; in bfloat16 the latents of the cache are rounded alike."""
    nano = moelab.shipped("nano/model")
    seen = {}
    texts = {}
    for dense_weights in ("torch", "float32"):
        with load(nano, dense_dtype=dense_dtype, dense_weights=dense_weights, activation="f32") as engine:
            routing = seen.setdefault(dense_weights, [])
            quiet = engine.generate("The people of the city", 24)

            def watch(step, rows, ids, gates, to=routing):
                to.append((ids, gates))

            engine.observers.append(watch)
            watched = engine.generate("The people of the city", 24)
            assert quiet.token_ids == watched.token_ids
            texts[dense_weights] = watched.token_ids
    assert len(seen["torch"]) == len(seen["float32"])
    if dense_dtype == "bfloat16":  # torch rounds every activation, the native step only the latents
        return
    assert texts["torch"] == texts["float32"]
    for (ids, gates), (their_ids, their_gates) in zip(seen["float32"], seen["torch"], strict=True):
        np.testing.assert_array_equal(ids, their_ids)
        np.testing.assert_allclose(gates, their_gates, rtol=1e-4)


def test_more_sequences_than_a_program_takes_go_through_torch(tmp_path):
    model = tiny_hf(6)
    rows = torch.randint(0, 97, (NATIVE_TOKENS + 1, 2), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = model(rows).logits
    with load(save_hf(model, tmp_path), dense_weights="float32") as engine:
        got, programs = decode(engine, rows)
    assert not programs
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
