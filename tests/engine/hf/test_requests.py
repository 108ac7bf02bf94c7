"""Whose token each row is: prefill, chunks, decode steps, batches, padding, ends, caches; and what is refused."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import moelab
from moelab.domain.trace import NO_TOKEN_ID, Phase
from moelab.store import open_trace, verify
from tests.engine.hf.hf_families import FAMILIES
from tests.engine.hf.test_families import padded_prompts

GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}


@pytest.fixture(scope="module")
def model():
    return FAMILIES["qwen3_moe"].build(3)


def generate(model, ids, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, **GREEDY | options)


def test_a_batch_with_left_padding(model):
    lengths = (4, 7, 2)
    ids, mask = padded_prompts(0, lengths)
    with moelab.record(model, keep_text=True) as trace:
        assert trace.num_tokens == 0
        assert trace.header.num_experts == 12
        texts = generate(model, ids, mask)
    table = trace.tokens
    assert np.unique(table.step[table.phase == Phase.PREFILL]).tolist() == [0]
    assert np.unique(table.step, return_counts=True)[1].tolist() == [13] + [3] * 5
    for request, length in enumerate(lengths):
        own = trace.requests([request]).tokens
        assert own.position.tolist() == list(range(length + 5)), "the last sampled token is never fed"
        assert own.token_id.tolist() == texts[request, 7 - length : -1].tolist()
        assert own.phase.tolist() == [Phase.PREFILL] * length + [Phase.DECODE] * 5
        assert own.step.tolist() == [0] * length + [1, 2, 3, 4, 5]


def test_cached_routing_is_that_of_one_forward(model):
    ids, _ = padded_prompts(1, (12,))
    with moelab.record(model, keep_text=True) as pieces:
        generate(model, ids, max_new_tokens=25, min_new_tokens=25, prefill_chunk_size=5)
    with torch.no_grad(), moelab.record(model) as whole:
        model(torch.from_numpy(pieces.tokens.token_id.astype(np.int64))[None])
    assert pieces.tokens.step.tolist() == [0] * 5 + [1] * 5 + [2] * 2 + list(range(3, 27))
    assert (pieces.tokens.phase[:12] == Phase.PREFILL).all()
    assert (whole.tokens.phase == Phase.PREFILL).all()
    assert whole.tokens.position.tolist() == pieces.tokens.position.tolist()
    differ = (np.sort(pieces.experts, -1) != np.sort(whole.experts, -1)).any(-1).sum()
    assert differ <= 1, "a near tie"


def test_a_row_that_is_over_has_no_more_rows(model):
    ids, mask = padded_prompts(5, (6, 6, 6))
    texts = generate(model, ids, mask, min_new_tokens=0, eos_token_id=None, max_new_tokens=12)[:, 6:].tolist()
    row, place = next(
        (row, place) for row in range(3) for place in range(2, 10)
        if sum(text.count(texts[row][place]) for text in texts) == 1
    )  # fmt: skip
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [texts[row][place], 96]
    try:
        with moelab.record(model, keep_text=True) as trace:
            generate(model, ids, mask, min_new_tokens=0, max_new_tokens=12)
        for request in range(3):
            new = place + 1 if request == row else 12  # tokens that belong to the text, its end included
            own = trace.requests([request]).tokens
            assert own.token_id.tolist() == ids[request].tolist() + texts[request][: new - 1]
        # One row alone: who feeds its end token by hand means it.
        with torch.no_grad(), moelab.record(model) as alone:
            cache = model(ids[:1]).past_key_values
            model(torch.tensor([[96]]), past_key_values=cache)
        assert alone.num_tokens == 7
    finally:
        model.generation_config.eos_token_id = before


def test_calls_by_hand_and_several_turns(model):
    ids, _ = padded_prompts(2, (8, 8))
    with torch.no_grad(), moelab.record(model, keep_text=True) as trace:
        cache = model(ids).past_key_values  # made by the pass itself
        model(ids[:, :1], past_key_values=cache)
        model(ids[:, :3], past_key_values=cache)  # a second turn
        other = DynamicCache(config=model.config)
        model(ids[:1], past_key_values=other)
        model(inputs_embeds=model.get_input_embeddings()(ids[:1, :2]), past_key_values=other)
        model(ids[:1])
    table = trace.tokens
    assert np.unique(table.request).tolist() == [0, 1, 2, 3]
    for request in (0, 1):
        own = trace.requests([request]).tokens
        assert own.position.tolist() == list(range(12))
        assert own.phase.tolist() == [Phase.PREFILL] * 8 + [Phase.DECODE] + [Phase.PREFILL] * 3
    assert trace.requests([2]).tokens.position.tolist() == list(range(10))
    assert trace.requests([2]).tokens.token_id[8:].tolist() == [NO_TOKEN_ID] * 2, "embeddings have no text"
    assert trace.requests([3]).tokens.position.tolist() == list(range(8))


def test_a_cache_filled_before_the_block_keeps_its_positions(model):
    ids, _ = padded_prompts(2, (8,))
    with torch.no_grad():
        cache = model(ids).past_key_values
        with moelab.record(model) as trace:
            model(ids[:, :1], past_key_values=cache)
    assert trace.tokens.position.tolist() == [8]
    assert trace.tokens.phase.tolist() == [Phase.DECODE]


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 2}], ids=str
)
def test_other_ways_to_generate(model, options):
    ids, _ = padded_prompts(4, (5,))
    with moelab.record(model, keep_text=True) as trace:
        text = generate(model, ids, **options)[0].tolist()
    if "num_beams" in options:
        assert np.unique(trace.tokens.request).tolist() == [0, 1]
    elif "use_cache" in options:  # the whole text again at every step: that is what was routed
        assert [len(trace.requests([r]).tokens) for r in range(6)] == [5, 6, 7, 8, 9, 10]
        assert trace.requests([5]).tokens.token_id.tolist() == text[:-1]
    else:
        assert trace.tokens.token_id.tolist() == text[:-1]
        assert trace.tokens.position.tolist() == list(range(10))


def test_a_folder_holds_what_memory_would(model, tmp_path):
    ids, mask = padded_prompts(6, (200, 300, 250))
    options = {
        "keep_text": True,
        "domain_of_request": ["prose", "code", "prose"],
        "licence": "CC0",
        "provenance": "test",
    }
    with moelab.record(model, tmp_path / "trace", **options) as stored:
        generate(model, ids, mask)
        generate(model, ids[:1], mask[:1])
    with moelab.record(model, **options) as memory:
        generate(model, ids, mask)
        generate(model, ids[:1], mask[:1])
    assert verify(tmp_path / "trace").ok
    assert memory.header.licence == "CC0"
    assert memory.header.domains == ("prose", "code")
    for request, domain in enumerate((0, 1, 0, -1)):
        assert (memory.requests([request]).tokens.domain == domain).all()
    for trace in (stored, open_trace(tmp_path / "trace").load()):
        assert trace.header == memory.header
        assert (trace.experts == memory.experts).all()
        assert (trace.gate_weights == memory.gate_weights).all()
        assert (trace.tokens.token_id == memory.tokens.token_id).all()
    with pytest.raises(ValueError, match="new trace folder"), moelab.record(model, tmp_path / "trace"):
        generate(model, ids)


def test_an_exception_keeps_what_was_recorded_and_hooks_go(model, tmp_path):
    ids, _ = padded_prompts(6, (9,))
    for path in (None, tmp_path / "trace"):
        with pytest.raises(KeyboardInterrupt), torch.no_grad(), moelab.record(model, path) as trace:  # noqa: PT012
            model(ids)
            raise KeyboardInterrupt
        assert trace.num_tokens == 9
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_trace_of_it_goes_on_to_a_plan(model):
    """The next steps of the loop take it as it is."""
    ids, mask = padded_prompts(9, (30, 20))
    with moelab.record(model) as trace:
        generate(model, ids, mask, max_new_tokens=40, min_new_tokens=40)
    plan = moelab.PLANNERS["frequency"](trace, slots_per_layer=4)
    result = moelab.simulate(trace, plan, phase="decode", progress=False)
    assert result.hits + result.misses == sum(
        len(np.unique(trace.experts[trace.tokens.step == step, layer]))
        for step in np.unique(trace.tokens.step[trace.tokens.phase == Phase.DECODE]) for layer in range(4)
    )  # fmt: skip


def test_what_is_refused_says_why(model):
    ids, _ = padded_prompts(0, (4, 4))
    dense = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=97)
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM has no router beside its experts"), moelab.record(dense):
        pass
    with pytest.raises(TypeError, match="expected an engine"), moelab.record("qwen3"):
        pass
    with pytest.raises(ValueError, match="domain_of_request"), moelab.record(model, domains=["a"]):
        pass
    with pytest.raises(ValueError, match="nothing was routed inside the block"), moelab.record(model):
        pass
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.gate routed outside a call"), moelab.record(model):
        model.model(ids)
    with pytest.raises(ValueError, match="_orig_mod"), moelab.record(torch.compile(model)):
        pass
    with pytest.raises(ValueError, match="what is padding"), torch.no_grad(), moelab.record(model):
        model(ids, attention_mask=torch.ones(2, 1, 4, 4, dtype=torch.bool))
    with torch.no_grad(), moelab.record(model.model) as inner:
        model.model(ids)
    assert inner.num_tokens == 8


def test_drafted_tokens_are_rows_as_the_documents_say():
    """Verification is prefill; rejected drafts keep their rows, at positions that come again."""
    model = FAMILIES["qwen3_moe"].build(3)
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    with moelab.record(model, keep_text=True) as trace:
        text = generate(model, ids, prompt_lookup_num_tokens=2, max_new_tokens=16, min_new_tokens=16)[0].tolist()
    table = trace.tokens
    after_prompt = table.position >= ids.shape[1]
    of_step = np.unique(table.step[after_prompt], return_counts=True)[1]
    assert (of_step > 1).any(), "no pass verified a draft, so this test says nothing"
    for step, count in zip(np.unique(table.step[after_prompt]), of_step, strict=True):
        expected = Phase.PREFILL if count > 1 else Phase.DECODE
        assert (table.phase[table.step == step] == expected).all()
    places = table.position[after_prompt].tolist()
    assert len(places) > len(set(places)), "no draft was rejected, so this test says nothing"
    last = {place: int(token) for place, token in zip(table.position, table.token_id, strict=True)}
    assert [last[place] for place in range(len(text) - 1)] == text[:-1], "the last row of a place is the text's"


def test_gradient_checkpointing_says_what_to_turn_off():
    model = FAMILIES["qwen3_moe"].build(3).train()
    model.gradient_checkpointing_enable()
    ids, _ = padded_prompts(0, (6,))
    with pytest.raises(ValueError, match=r"gradient checkpointing .* turn it off"), moelab.record(model):
        model(ids, labels=ids).loss.backward()


def test_a_router_of_another_form_is_named(model):
    class OddRouter(torch.nn.Module):
        def forward(self, hidden_states):
            return hidden_states, hidden_states.argmax(-1)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.experts = OddRouter(), torch.nn.ModuleList([torch.nn.Linear(4, 4)])

        def forward(self, input_ids):
            return self.router(torch.ones(input_ids.numel(), 4))

    odd = Block()
    with pytest.raises(TypeError, match=r"router \(OddRouter\) returned .*expected \(logits"), moelab.record(odd):
        odd(torch.ones(1, 3, dtype=torch.long))
