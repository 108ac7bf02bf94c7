"""Counts and pairs from their published schema, broken reports, and that nobody can simulate them."""

import json

import numpy as np
import pytest

from moelab.formats import COUNT_FORMATS, FORMATS
from moelab.formats import mbolt_coactivation as reader
from moelab.sources import open_source, read_counts
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

REPORT = {
    "model": "tiny", "quant": "IQ3_XXS", "n_layers": 2, "n_expert_per_layer": 4, "total_experts": 8, "k": 2,
    "n_decode_tokens": 10, "layers": [
        {"layer": 0, "heat": [9, 6, 5, 0], "pairs": [[0, 1, 6, 1.9], [2, 0, 5, 1.6]], "clusters": []},
        {"layer": 1, "heat": [5, 5, 5, 5], "pairs": []},
    ],
}  # fmt: skip


def written(tmp_path, **changes):
    path = tmp_path / "coactivation.json"
    path.write_text(json.dumps(REPORT | changes))
    return path


def test_reads_the_published_schema(tmp_path):
    path = written(tmp_path)
    for place in (path, tmp_path):
        assert [name for name, module in COUNT_FORMATS.items() if module.matches(place)] == ["mbolt_coactivation"]
        assert not any(module.matches(place) for module in FORMATS.values())
        counts = read_counts(place)
        assert (counts.model, counts.num_tokens, counts.top_k, counts.phase) == ("tiny", 10, 2, "decode")
        assert counts.loads.tolist() == [[9, 6, 5, 0], [5, 5, 5, 5]]
        assert counts.pairs.tolist() == [[0, 0, 1, 6], [0, 0, 2, 5]]
        assert counts.to_frame().load.sum() == 40
        assert "not simulated" in repr(counts)


def test_counts_are_refused_where_a_trace_is_needed(tmp_path):
    with pytest.raises(ValueError, match=r"holds counts .* not simulated, planned on or replayed"):
        open_source(written(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_decode_tokens": 11}, "loads of layer 0 sum to 20, expected num_tokens x top_k = 11 x 2"),
        ({"n_expert_per_layer": 5}, "expected \\[layers, 5\\]"),
        ({"layers": [{"layer": 0}]}, "no co-activation report"),
        ({"layers": [REPORT["layers"][0] | {"pairs": [[0, 3, 1, 2.0]]}]}, "more often than one of its experts"),
        ({"layers": [REPORT["layers"][0] | {"pairs": [[0, 4, 1, 2.0]]}]}, "expected \\(layer, lower expert"),
    ],
)
def test_broken_reports_say_what_is_wrong(tmp_path, changes, said):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=said) as error:
        reader.read(path)
    assert str(path) in str(error.value)


def test_truncated_file(tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match="no co-activation report"):
        reader.read(path)


@needs_shared_traces
def test_the_recorded_table():
    folder = SHARED_TRACES / "mbolt_qwen3_30b_counts"
    counts = read_counts(folder)
    with np.load(folder / "coactivation_qwen3-30b-a3b.heat.npz") as heat:
        assert np.array_equal(counts.loads, heat["counts"]), "the same numbers in a second file"
    assert counts.num_tokens == 75_773
    assert len(counts.pairs) == 83_065
