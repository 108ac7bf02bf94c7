"""ESFT expert scores in both forms, broken ones, and the recorded folder."""

import json

import numpy as np
import pytest

from moelab.domain.model import ModelSpec
from moelab.domain.trace import Phase
from moelab.formats import FORMATS, esft
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

SPEC = ModelSpec.preset(esft.PRESET)
LAYERS, EXPERTS, TOP_K = SPEC.num_moe_layers, SPEC.n_routed_experts, SPEC.num_experts_per_tok
LENGTHS = {"law": [3, 2], "summary": [4]}


def random_scores(seed=0):
    """{domain: [(ids [T, L, K], weights)]}, ids in no order, as torch.topk(sorted=False) gives them."""
    rng = np.random.default_rng(seed)
    scores = {}
    for domain, lengths in LENGTHS.items():
        scores[domain] = []
        for length in lengths:
            ids = np.argsort(rng.random((length, LAYERS, EXPERTS)), axis=2)[:, :, :TOP_K]
            scores[domain].append((ids, np.round(rng.random(ids.shape) / TOP_K, 4)))
    return scores


def write_text(folder, scores):
    for domain, sequences in scores.items():
        (folder / domain).mkdir(parents=True)
        for layer in range(LAYERS):
            lines = [
                "\t".join(map(str, ids[:, layer].ravel())) + "\t\t" + "\t".join(map(str, weights[:, layer].ravel()))
                for ids, weights in sequences
            ]
            (folder / domain / f"expert_weights_{layer + 1}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_packed(folder, scores):
    folder.mkdir()
    rows = [(domain, line, *arrays) for domain, lines in scores.items() for line, arrays in enumerate(lines)]
    ids, weights = np.concatenate([row[2] for row in rows]), np.concatenate([row[3] for row in rows])
    order = np.argsort(-weights, axis=2, kind="stable")
    lengths = [len(row[2]) for row in rows]
    np.savez(
        folder / "trace.npz", expert_ids=np.take_along_axis(ids, order, 2).astype(np.uint8),
        weights=np.take_along_axis(weights, order, 2).astype(np.float16),
        seq_id=np.repeat(np.arange(len(rows)), lengths).astype(np.uint16),
    )  # fmt: skip
    sequences = [
        {"seq": i, "domain": domain, "line": line, "n_tokens": lengths[i]} for i, (domain, line, *_) in enumerate(rows)
    ]
    (folder / "sequences.json").write_text(json.dumps(sequences))
    return folder


def test_both_forms_give_the_same_trace(tmp_path):
    scores = random_scores()
    text, packed = write_text(tmp_path / "text", scores), write_packed(tmp_path / "packed", scores)
    for folder in (text, packed):
        assert [name for name, module in FORMATS.items() if module.matches(folder)] == ["esft"]
    a, b = esft.read(text), esft.read(packed)
    assert np.array_equal(a.experts, b.experts)
    assert np.array_equal(a.gate_weights, b.gate_weights)
    assert a.header.domains == b.header.domains == ("law", "summary")
    assert a.tokens.request.tolist() == b.tokens.request.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert a.tokens.position.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert a.tokens.step.tolist() == a.tokens.request.tolist(), "one forward pass for each sequence"
    assert (a.tokens.phase == Phase.PREFILL).all()
    assert a.header.gate_weight_kind == "softmax_over_all"
    assert a.header.model_layer_of_layer[0] == 1
    # Rank order: sorted by hand from the first sequence.
    ids, weights = scores["law"][0]
    by_hand = sorted(zip(-weights[1, 4], range(TOP_K), ids[1, 4], strict=True))
    assert a.experts[1, 4].tolist() == [row[2] for row in by_hand]


def test_broken_text(tmp_path):
    folder = write_text(tmp_path / "a", random_scores())
    file = folder / "law" / "expert_weights_7.txt"
    whole = file.read_text()
    for damaged, said in (
        (whole[: len(whole) // 2], "line 1 has|line 2 has"),
        (whole.split("\n")[0] + "\n", "sequences of other lengths"),
        ("", "is empty"),
        (whole.replace("\t", "\tx", 1), "no number"),
        (str(EXPERTS) + whole[whole.index("\t") :], f"expected ids below {EXPERTS}"),
    ):
        file.write_text(damaged)
        with pytest.raises(ValueError, match=said) as error:
            esft.read(folder)
        assert "expert_weights_" in str(error.value)
    file.unlink()
    with pytest.raises(ValueError, match="has files for model layers"):
        esft.read(folder)


def test_broken_archive(tmp_path):
    folder = write_packed(tmp_path / "a", random_scores())
    whole = (folder / "trace.npz").read_bytes()
    (folder / "trace.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        esft.read(folder)
    (folder / "trace.npz").write_bytes(whole)
    sequences = json.loads((folder / "sequences.json").read_text())
    (folder / "sequences.json").write_text(json.dumps(sequences[:-1]))
    with pytest.raises(ValueError, match="belong to different captures"):
        esft.read(folder)


@needs_shared_traces
def test_the_recorded_folder():
    trace = esft.read(SHARED_TRACES / "deepseek_v2_lite_esft")
    assert trace.shape == (33_279, 26, 6)
    requests, domain = np.unique(np.stack([trace.tokens.request, trace.tokens.domain]), axis=1)
    assert len(requests) == 213
    counts = dict(zip(trace.header.domains, np.bincount(domain).tolist(), strict=True))
    assert counts == {"intent": 127, "law": 33, "summary": 13, "translation": 40}
    assert (np.diff(np.sort(trace.experts, axis=2), axis=2) > 0).all(), "no expert twice in a row"
    assert trace.gate_weights.astype(float).sum(2).mean() == pytest.approx(0.3735, abs=1e-3)
