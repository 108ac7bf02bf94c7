"""GPT-OSS expert fingerprints in both forms, broken ones, and the recorded folder."""

import json

import numpy as np
import pytest

from moelab.domain.model import ModelSpec
from moelab.domain.trace import Phase
from moelab.formats import FORMATS
from moelab.formats import gpt_oss_fingerprint as reader
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

SPEC = ModelSpec.preset(reader.PRESET)
LAYERS, EXPERTS, TOP_K = SPEC.num_moe_layers, SPEC.n_routed_experts, SPEC.num_experts_per_tok


def generation(dataset, first, length, seed):
    rng = np.random.default_rng(seed)
    router_data = []
    for position in range(first, first + length):
        layers = {}
        for layer in range(LAYERS):
            probs = np.sort(rng.dirichlet(np.ones(TOP_K)))[::-1]
            experts = rng.permutation(EXPERTS)[:TOP_K].tolist()
            layers[f"layer_{layer}"] = {"selected_experts": experts, "selected_probs": probs.tolist()}
        router_data.append({f"token_{position}": layers})
    return {
        "row_index": seed, "dataset": dataset, "category": "any", "finished_successfully": True,
        "has_repetition": False,
        "original_prompt": "why", "full_text": ["why"], "generated_only": ["so"], "router_data": router_data,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for dataset, first, length, seed in (("alpha", 7, 3, 0), ("beta", 20, 2, 1)):
        (tmp_path / "data" / dataset / "any").mkdir(parents=True)
        file = tmp_path / "data" / dataset / "any" / "True_False_examples.json"
        file.write_text(json.dumps(generation(dataset, first, length, seed)))
    return tmp_path / "data"


def test_reads_the_published_schema(folder):
    assert [name for name, module in FORMATS.items() if module.matches(folder)] == ["gpt_oss_fingerprint"]
    trace = reader.read(folder)
    assert trace.shape == (5, LAYERS, TOP_K)
    assert trace.header.domains == ("alpha", "beta")
    assert trace.header.gate_weight_kind == "softmax_over_selected"
    assert trace.tokens.request.tolist() == [0, 0, 0, 1, 1]
    assert trace.tokens.position.tolist() == [7, 8, 9, 20, 21]
    assert trace.tokens.step.tolist() == [0, 1, 2, 3, 4]
    assert (trace.tokens.phase == Phase.DECODE).all()
    written = generation("beta", 20, 2, 1)["router_data"][1]["token_21"]["layer_5"]["selected_experts"]
    assert trace.experts[4, 5].tolist() == written


def test_one_file_and_a_packed_folder(folder, tmp_path):
    whole = reader.read(folder)
    file = folder / "beta" / "any" / "True_False_examples.json"
    assert reader.matches(file)
    assert np.array_equal(reader.read(file).experts, whole.experts[3:])
    packed = tmp_path / "packed"
    packed.mkdir()
    np.savez(
        packed / "trace.npz", expert_ids=whole.experts.astype(np.uint8), weights=whole.gate_weights,
        seq_id=whole.tokens.request.astype(np.uint16), position=whole.tokens.position.astype(np.uint16),
    )  # fmt: skip
    sequences = [
        {"seq": i, "dataset": name, "first_pos": 0, "n_tokens": length}
        for i, (name, length) in enumerate((("alpha", 3), ("beta", 2)))
    ]
    (packed / "sequences.json").write_text(json.dumps(sequences))
    assert [name for name, module in FORMATS.items() if module.matches(packed)] == ["gpt_oss_fingerprint"]
    again = reader.read(packed)
    assert np.array_equal(again.experts, whole.experts)
    assert np.array_equal(again.tokens.position, whole.tokens.position)


def test_broken_files(folder):
    file = folder / "alpha" / "any" / "True_False_examples.json"
    whole = json.loads(file.read_text())

    def fails(change, said):
        document = json.loads(json.dumps(whole))
        change(document)
        file.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=said) as error:
            reader.read(folder)
        assert str(file) in str(error.value)

    fails(lambda d: d["router_data"].pop(1), "with gaps")
    fails(lambda d: d["router_data"].clear(), "0 tokens")
    fails(lambda d: d["router_data"][0]["token_7"].pop("layer_3"), "token 7 has 23 layers")
    fails(lambda d: d["router_data"][0]["token_7"]["layer_3"]["selected_experts"].pop(), "expected 4 experts")
    fails(lambda d: d["router_data"][0]["token_7"]["layer_3"].update(selected_experts=[1, 2, 3, 32]), "below 32")
    fails(lambda d: d.pop("router_data"), "no expert fingerprint")
    file.write_text(json.dumps(whole)[:-20])
    with pytest.raises(ValueError, match="no expert fingerprint"):
        reader.read(folder)


@needs_shared_traces
def test_the_recorded_folder():
    trace = reader.read(SHARED_TRACES / "gpt_oss_20b_fingerprint")
    assert trace.shape == (21_099, 24, 4)
    assert len(np.unique(trace.tokens.request)) == 58
    np.testing.assert_allclose(trace.gate_weights.astype(float).sum(2), 1, atol=5e-3)
    for request in (0, 31, 57):
        assert (np.diff(trace.tokens.position[trace.tokens.request == request]) == 1).all()
