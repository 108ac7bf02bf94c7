"""What is recorded is what transformers routes, and the token table says how the tokens were run."""

import json

import numpy as np
import pytest
import torch

from moelab.domain.trace import NO_EXPERT, NO_TOKEN_ID, Phase, Trace
from moelab.engine import load, record
from moelab.engine.prompts import Prompt
from moelab.engine.record_prompts import record_prompts
from moelab.engine.sampling import Sampling
from moelab.kernels import isa_table
from moelab.store import open_trace, verify
from tests.engine.tiny_models import YARN, hf_logits, save_hf, tiny_hf

NATIVE = any(row.supported and row.isa != "numba" for row in isa_table())
SURE_MARGIN = 1e-5  # between the k-th and the next biased score; below it the choice may differ


@pytest.fixture(scope="module")
def model():
    return tiny_hf(11, rope_parameters=YARN, num_hidden_layers=4)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    with load(save_hf(model, tmp_path_factory.mktemp("recorded"))) as engine:
        yield engine


def tokens(count, seed=0):
    return torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_experts_and_weights_are_those_of_transformers(engine, model):
    token_ids = tokens(200)
    seen = []

    def hook(router, inputs, output):
        scores = torch.nn.functional.linear(inputs[0].view(-1, inputs[0].shape[-1]).float(), router.weight).sigmoid()
        seen.append((scores + router.e_score_correction_bias, output[1], output[2]))

    hooks = [layer.mlp.gate.register_forward_hook(hook) for layer in model.model.layers[1:]]
    with torch.no_grad():
        model(torch.tensor(token_ids)[None])
    for handle in hooks:
        handle.remove()
    with record(engine) as trace:
        engine.forward(token_ids)
    assert trace.header.model_layer_of_layer == (1, 2, 3)
    assert trace.header.gate_weight_kind == "normalised_scaled"
    unsure = 0
    for layer, (choice, weights, ids) in enumerate(seen):
        ordered = choice.sort(descending=True).values
        sure = ((ordered[:, 2] - ordered[:, 3]) > SURE_MARGIN).numpy()
        unsure += int((~sure).sum())
        ours, theirs = trace.experts[:, layer].astype(np.int64), ids.numpy()
        assert (np.sort(ours[sure]) == np.sort(theirs[sure])).all()
        by_id = np.argsort(ours, 1), np.argsort(theirs, 1)
        np.testing.assert_allclose(
            np.take_along_axis(trace.gate_weights[:, layer], by_id[0], 1)[sure],
            np.take_along_axis(weights.numpy(), by_id[1], 1)[sure].astype(np.float16),
            atol=2e-3,
        )
        # Rank order: the biased score never rises along the slots.
        ranked_scores = np.take_along_axis(choice.numpy(), ours, 1)
        assert (np.diff(ranked_scores, axis=1) <= SURE_MARGIN).all()
    assert unsure <= 6, f"{unsure} of 600 choices are too near to call"


@pytest.mark.parametrize("changes", [{}, {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 0}], ids=str)
@pytest.mark.parametrize("dense_weights", ["torch", *["float32"] * NATIVE])
def test_scores_and_stale_gates_are_those_of_transformers(changes, dense_weights, tmp_path):
    """In prefill and decode: biased scores of all experts, and each router on the residual of a layer early."""
    model, token_ids = tiny_hf(21, num_hidden_layers=5, **changes), tokens(60, 4)
    hidden, scores, stale = [], [], []
    moe = [layer for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    hooks = [
        layer.post_attention_layernorm.register_forward_hook(lambda _, inputs, __: hidden.append(inputs[0][0]))
        for layer in moe
    ]
    hf_logits(model, token_ids)
    for handle in hooks:
        handle.remove()
    with torch.no_grad():
        for number, layer in enumerate(moe):
            gate = layer.mlp.gate
            x = layer.post_attention_layernorm(hidden[number])
            bias = gate.e_score_correction_bias
            scores.append((x @ gate.weight.T).sigmoid() + bias - bias.min())
            if number:
                stale.append(gate(layer.post_attention_layernorm(hidden[number - 1]))[2])
    path = tmp_path / "trace"
    with load(save_hf(model, tmp_path / "model"), dense_weights=dense_weights, dense_dtype="float32") as engine:
        with record(engine, path, scores=True, stale_gate=True) as trace:
            cache, sequence = engine.new_cache(1), engine.new_sequence(token_ids, 1, Sampling(), ())
            engine.step(torch.tensor([token_ids[:40]]), cache, 0, [sequence], Phase.PREFILL, "none")
            for token in token_ids[40:]:
                engine.step(torch.tensor([[token]]), cache, 0, [sequence], Phase.DECODE, "last")
        with record(engine) as plain:
            engine.forward(token_ids)
    assert plain.extras == {}
    expected = torch.stack(scores, 1).numpy()
    np.testing.assert_allclose(trace.extras["candidate_scores"], expected, atol=1e-3)
    assert trace.extras["candidate_scores"].dtype == np.float16
    assert (trace.extras["candidate_scores"] >= 0).all()
    named = trace.extras["stale_gate_experts"].astype(np.int64)
    assert (named[:, 0] == NO_EXPERT).all()
    differ = (np.sort(named[:, 1:], -1) != np.sort(torch.stack(stale, 1).numpy(), -1)).any(-1)
    assert differ.sum() <= 2, "more than near ties"
    assert (np.sort(named[:, 1:], -1) != np.sort(trace.experts[:, 1:], -1)).any(), "a layer early is not the layer"
    assert verify(path).ok


def test_one_request(engine):
    prompt = tokens(20)
    with record(engine, keep_text=True) as trace:
        assert trace.num_tokens == 0
        result = engine.generate(prompt, 10, stop=(), prefill_chunk=8, domain="code")
    assert isinstance(trace, Trace)
    table = trace.tokens
    assert trace.num_tokens == 20 + 9  # the last sampled token is never routed
    assert table.position.tolist() == list(range(29))
    assert table.step.tolist() == [0] * 8 + [1] * 8 + [2] * 4 + list(range(3, 12))
    assert table.phase.tolist() == [Phase.PREFILL] * 20 + [Phase.DECODE] * 9
    assert table.token_id.tolist() == prompt + list(result.token_ids[:-1])
    assert trace.header.domains == ("code",)
    assert (table.domain == 0).all()
    assert (table.request == result.request).all()
    assert engine.observers == []


def test_chunked_and_cached_routing_is_that_of_one_forward(engine):
    prompt = tokens(30, 3)
    with record(engine, keep_text=True) as pieces:
        engine.generate(prompt, 20, stop=(), prefill_chunk=7)
    with record(engine) as whole:
        engine.forward(pieces.tokens.token_id.tolist())
    differ = (np.sort(pieces.experts, -1) != np.sort(whole.experts, -1)).any(-1).sum()
    assert differ <= 1  # a near tie


def test_batches_are_steps(engine):
    prompts = [tokens(n, n) for n in (5, 9, 3, 7, 4)]
    with record(engine) as trace:
        results = engine.generate(prompts, 12, stop=(), batch_size=3)
    table = trace.tokens
    decode = table.phase == Phase.DECODE
    assert trace.num_tokens == sum(map(len, prompts)) + 5 * 11
    assert (table.token_id == NO_TOKEN_ID).all()
    steps, rows = np.unique(table.step[decode], return_counts=True)
    assert rows.max() == 3
    assert (rows[:11] == 3).all()  # three sequences until the first three end together
    assert len(np.intersect1d(steps, table.step[~decode])) == 0
    for result, prompt in zip(results, prompts, strict=True):
        own = trace.requests([result.request]).tokens
        assert own.position.tolist() == list(range(len(prompt) + 11))
        assert (np.diff(own.step[own.phase == Phase.DECODE]) >= 1).all()
    assert len(np.unique(table.request)) == 5


def test_a_folder_holds_what_memory_would(engine, tmp_path):
    prompts = [tokens(n, n) for n in (300, 250, 40)]
    with record(engine, tmp_path / "trace", domains=["a", "b"], keep_text=True) as stored:
        engine.generate(prompts[:2], 6, stop=(), domain="a")
        engine.generate(prompts[2], 6, stop=(), domain="b")
    with record(engine, domains=["a", "b"], keep_text=True) as memory:
        engine.generate(prompts[:2], 6, stop=(), domain="a")
        engine.generate(prompts[2], 6, stop=(), domain="b")
    assert verify(tmp_path / "trace").ok
    again = open_trace(tmp_path / "trace").load()
    for trace in (stored, again):
        assert (trace.experts == memory.experts).all()
        assert (trace.gate_weights == memory.gate_weights).all()
        for name in ("step", "position", "phase", "domain", "token_id"):
            assert (getattr(trace.tokens, name) == getattr(memory.tokens, name)).all(), name
    assert again.header == memory.header


@pytest.mark.parametrize("interrupted_first", [True, False])
def test_an_exception_keeps_what_was_recorded(engine, tmp_path, interrupted_first):
    def interrupt(step, rows, ids, weights):
        if rows.position[0] == 25:
            raise KeyboardInterrupt

    for path in (None, tmp_path / "trace"):
        with pytest.raises(KeyboardInterrupt), record(engine, path) as trace:  # noqa: PT012
            engine.observers.insert(0 if interrupted_first else 1, interrupt)
            try:
                engine.generate(tokens(20), 10, stop=())
            finally:
                engine.observers.remove(interrupt)
        # The step of position 25 was computed and is counted; only who stood behind the interrupt did not see it.
        assert trace.num_tokens == 25 + (not interrupted_first)
        assert (trace.tokens.position == np.arange(trace.num_tokens)).all()
        assert engine.observers == []


def test_a_wrong_domain_costs_no_row_before_it(engine, tmp_path):
    with (  # noqa: PT012
        pytest.raises(ValueError, match="domain: expected one of a"),
        record(engine, tmp_path / "t", domains=("a",)) as trace,
    ):
        for domain in ("a", "b"):
            engine.generate(tokens(8), 6, stop=(), domain=domain)
    assert trace.num_tokens == 8 + 5  # all of "a": the last token that was sampled is not fed


def test_folders_and_domains_that_do_not_fit(engine, tmp_path):
    with record(engine, tmp_path / "trace"):
        engine.forward(tokens(3))
    with pytest.raises(ValueError, match="new trace folder"), record(engine, tmp_path / "trace"):
        pass
    with pytest.raises(ValueError, match="got 'b'"), record(engine, tmp_path / "other", domains=["a"]):
        engine.generate(tokens(3), 3, domain="b")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"prefill_chunk": 0}])
def test_wrong_size_leaves_no_folder(engine, tmp_path, wrong):
    prompts = [Prompt(0, (1, 2, 3), 2)]
    with pytest.raises(ValueError, match="batch_size, prefill_chunk: expected 1 or more"):
        record_prompts(engine, prompts, tmp_path / "out", progress=False, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_record_prompts(engine, tmp_path):
    rows = [
        {"request": f"r{i}", "domain": "ab"[i % 2], "prompt": tokens(4 + i, i), "max_new_tokens": 5 + i}
        for i in range(5)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    capture = record_prompts(engine, path, tmp_path / "out", batch_size=2, progress=False, stop_at_end_token=False)
    trace = open_trace(tmp_path / "out").load()
    assert trace.header.domains == ("a", "b")
    assert trace.num_tokens == sum(len(r["prompt"]) + r["max_new_tokens"] - 1 for r in rows)
    assert [g.request for g in capture.generations] == list(range(5))
    for i, row in enumerate(rows):
        own = trace.requests([i]).tokens
        assert (own.domain == i % 2).all()
        assert int((own.phase == Phase.DECODE).sum()) == row["max_new_tokens"] - 1
    assert '"batch_size": 2' in trace.header.provenance
    assert "decode_tokens: 30" in repr(capture)
    assert len(capture.to_frame()) == 5


def test_a_wrong_prompt_leaves_no_folder(engine, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"request": 0, "domain": "a", "prompt": "text", "max_new_tokens": 5}))
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        record_prompts(engine, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
