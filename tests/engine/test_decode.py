"""Cached decode, chunked prefill and batches give what one full forward pass gives."""

import pytest
import torch

from moelab.domain.trace import Phase
from moelab.engine import load
from moelab.engine.sampling import Sampling
from tests.engine.tiny_models import YARN, save_hf, tiny_hf

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    model = tiny_hf(1, rope_parameters=YARN, n_group=2, topk_group=1)
    with load(save_hf(model, tmp_path_factory.mktemp("tiny"))) as engine:
        yield engine


def tokens(count, seed=0):
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 7, 16, 300])
def test_chunked_prefill_equals_full_forward(engine, chunk):
    token_ids = tokens(45)
    full = engine.forward(token_ids)
    sequence = engine.new_sequence(token_ids.tolist(), 1, Sampling(), ())
    cache = engine.new_cache(1)
    torch.testing.assert_close(engine.prefill(sequence, cache, 0, chunk), full[-1], atol=TOLERANCE, rtol=0)
    assert cache.lengths == [45]


def test_cached_decode_equals_full_forward_while_the_cache_grows(engine):
    token_ids = tokens(600, 2)[:300]
    full = engine.forward(token_ids)
    sequence = engine.new_sequence(token_ids[:3].tolist(), 1, Sampling(), ())
    cache = engine.new_cache(1)
    rows = [engine.prefill(sequence, cache, 0)]
    for token in token_ids[3:].tolist():
        rows.append(engine.step(torch.tensor([[token]]), cache, 0, [sequence], Phase.DECODE, "last")[0, 0])
    torch.testing.assert_close(torch.stack(rows), full[2:], atol=TOLERANCE, rtol=0)
    assert cache.capacity == 512


def test_sequences_of_different_lengths_decode_together_as_alone(engine):
    starts = [3, 31, 1, 12]
    sequences = [engine.new_sequence(tokens(n, n).tolist(), 1, Sampling(), ()) for n in starts]
    together = engine.new_cache(4)
    for row, sequence in enumerate(sequences):
        engine.prefill(sequence, together, row, 8)
    alone = [engine.new_cache(1) for _ in starts]
    for sequence, cache in zip(sequences, alone, strict=True):
        engine.prefill(sequence, cache, 0)
    for step in range(6):
        fed = tokens(4, 100 + step)[:, None]
        got = engine.step(fed, together, 0, sequences, Phase.DECODE, "last")
        expected = [
            engine.step(fed[i : i + 1], cache, 0, sequences[i : i + 1], Phase.DECODE, "last")
            for i, cache in enumerate(alone)
        ]
        torch.testing.assert_close(got, torch.cat(expected), atol=TOLERANCE, rtol=0)


def test_two_sequences_of_one_length_in_one_prefill(engine):
    batch = torch.stack((tokens(20, 1), tokens(20, 2)))
    got = engine.forward(batch)
    torch.testing.assert_close(got[1], engine.forward(batch[1]), atol=TOLERANCE, rtol=0)


def test_generations_do_not_depend_on_the_batch(engine):
    prompts = [tokens(n, n).tolist() for n in (5, 40, 1, 17, 9)]
    for how in ({}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 4}):
        together = engine.generate(prompts, 30, stop=(), batch_size=3, **how)
        by_five = engine.generate(prompts, 30, stop=(), batch_size=5, prefill_chunk=6, **how)
        one_by_one = engine.generate(prompts, 30, stop=(), batch_size=1, **how)
        for a, b, c in zip(together, by_five, one_by_one, strict=True):
            assert a.token_ids == b.token_ids == c.token_ids
            assert len(a.token_ids) == 30


def test_seed_repeats_a_sample_and_another_seed_does_not(engine):
    prompt = tokens(8).tolist()
    first, again, other = (engine.generate(prompt, 20, temperature=1.0, seed=s, stop=()) for s in (1, 1, 2))
    assert first.token_ids == again.token_ids != other.token_ids


def test_stop_tokens_end_a_sequence_and_the_others_go_on(engine):
    prompts = [tokens(n, n).tolist() for n in (5, 40, 17)]
    free = engine.generate(prompts, 25, stop=())
    stop = free[1].token_ids[4]
    stopped = engine.generate(prompts, 25, stop=[stop])
    for before, after in zip(free, stopped, strict=True):
        at = before.token_ids.index(stop) if stop in before.token_ids else None
        expected = before.token_ids if at is None else before.token_ids[: at + 1]
        assert after.token_ids == expected
        assert after.finish_reason == ("length" if at is None else "stop")


def test_stream_gives_the_tokens_of_generate(engine):
    prompt = tokens(6).tolist()
    streamed = [token for token, _ in engine.stream(prompt, 12, stop=())]
    assert tuple(streamed) == engine.generate(prompt, 12, stop=()).token_ids


def test_generation_says_what_ran(engine):
    before = engine.counters
    result = engine.generate(tokens(10).tolist(), 5, stop=())
    after = engine.counters
    assert (result.isa, result.activation, result.dense_path) == (engine.isa, "f32", engine.dense_path)
    assert after.num_prefill_tokens - before.num_prefill_tokens == 10
    assert after.num_decode_tokens - before.num_decode_tokens == 4
    assert after.expert_bytes > before.expert_bytes
    assert after.step_s > before.step_s
    assert "decode tok/s" in repr(result)
    assert "<table>" in result._repr_html_()
    assert len(result.to_frame()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 4), "at least one token"),
        (([5, 97], 4), "expected 0..96, got 97"),
        (([5], 0), "max_new_tokens"),
        (("text", 4), "tokenizer.json"),
    ],
)
def test_wrong_requests_are_refused(engine, arguments, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(*arguments)


@pytest.mark.parametrize("how", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_wrong_sampling_is_refused(how):
    with pytest.raises(ValueError, match=next(iter(how))):
        Sampling(**how)
