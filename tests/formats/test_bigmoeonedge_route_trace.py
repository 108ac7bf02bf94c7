"""The route trace from its published schema, every kind of broken file, and the recorded one."""

import numpy as np
import pytest

from moelab.domain.trace import NO_EXPERT, Phase
from moelab.formats import FORMATS
from moelab.formats import bigmoeonedge_route_trace as reader
from tests.shared_traces import SHARED_TRACES, needs_shared_traces

COMMENTS = """# route_trace v1
# model=/data/some folder/Tiny-MoE-Q4_K_M.gguf arch=tinymoe n_layer=3 n_expert=6 n_expert_used=2
# layer=1 expert_bytes=100 dense_bytes=7
# layer=2 expert_bytes=120 dense_bytes=7
"""
HEADER = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"
# Two prefill tokens (the last layer routes the second only), two decode tokens; layer-major as engines write.
ROWS = [
    "0,0,0,1,0,3,0.7,0,100", "0,0,0,1,1,1,0.3,0,100", "0,0,1,1,0,4,0.6,0,100", "0,0,1,1,1,3,0.4,0,0",
    "0,0,1,2,0,5,0.8,0,120", "0,0,1,2,1,0,0.2,0,120",
    "0,1,2,1,0,3,0.5,1,0", "0,1,2,1,1,2,0.5,0,100", "0,1,2,2,0,5,0.9,1,0", "0,1,2,2,1,1,0.1,2,120",
    "0,1,3,1,0,0,0.5,0,100", "0,1,3,1,1,2,0.5,1,0", "0,1,3,2,0,1,0.9,1,0", "0,1,3,2,1,5,0.1,1,0",
]  # fmt: skip


def written(tmp_path, *, comments=COMMENTS, header=HEADER, rows=ROWS):
    path = tmp_path / "tiny.route.csv"
    path.write_text(comments + header + "\n" + "\n".join(rows) + "\n")
    return path


def test_reads_the_published_schema(tmp_path):
    path = written(tmp_path)
    assert [name for name, module in FORMATS.items() if module.matches(path)] == ["bigmoeonedge_route_trace"]
    trace = reader.read(path, native_top_k=4)
    head = trace.header
    assert (head.model, head.model_type, head.quantization) == ("Tiny-MoE-Q4_K_M", "tinymoe", "Q4_K_M")
    assert (head.num_experts, head.top_k, head.native_top_k) == (6, 2, 4)
    assert (head.model_layer_of_layer, head.expert_bytes) == ((1, 2), (100, 120))
    assert head.gate_weight_kind == "normalised"
    assert trace.experts[0].tolist() == [[3, 1], [NO_EXPERT, NO_EXPERT]]
    assert trace.experts[3].tolist() == [[0, 2], [1, 5]]
    assert trace.gate_weights[2, 1].tolist() == pytest.approx([0.9, 0.1], abs=1e-3)
    assert trace.tokens.step.tolist() == [0, 0, 1, 2], "one pass for the prefill, one for each decode token"
    assert trace.tokens.position.tolist() == [0, 1, 2, 3]
    assert trace.tokens.phase.tolist() == [Phase.PREFILL, Phase.PREFILL, Phase.DECODE, Phase.DECODE]
    assert trace.extras["residency"].tolist()[0] == [[0, 0], [255, 255]]
    assert trace.extras["residency"].tolist()[2] == [[1, 0], [1, 2]]
    assert trace.extras["read_bytes"].tolist()[1] == [[100, 0], [120, 120]]


def test_dropped_rows_were_not_executed(tmp_path):
    rows = [row + (",1" if i == 7 else ",0") for i, row in enumerate(ROWS)]
    trace = reader.read(written(tmp_path, header=HEADER + ",dropped", rows=rows))
    assert trace.experts[2, 0].tolist() == [3, NO_EXPERT]
    assert trace.gate_weights[2, 0, 1] == 0
    assert trace.extras["residency"][2, 0].tolist() == [1, 255]


def test_weights_that_do_not_sum_to_one_are_of_an_unknown_kind(tmp_path):
    rows = [row.replace("0.9,", "0.3,") for row in ROWS]
    assert reader.read(written(tmp_path, rows=rows)).header.gate_weight_kind == "unknown"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"comments": COMMENTS.replace("v1", "v2")}, "expected '# route_trace v1'"),
        ({"comments": COMMENTS.replace("arch=tinymoe ", "")}, "0 lines `# model="),
        ({"comments": COMMENTS.replace("# layer=2", "# layer=9")}, "expected a line `# layer=2"),
        ({"header": HEADER.replace("residency", "hit")}, "expected residency too"),
        ({"rows": ROWS[:-1]}, "decode step 3, layer 1 of the trace has slots \\[0\\]"),
        ({"rows": ROWS[:-2]}, "decode step 3"),
        ({"rows": [*ROWS, ROWS[-1]]}, "slots \\[0, 1, 1\\]"),
        ({"rows": [*ROWS[:-1], "0,1,3,2,1,6,0.1,1,0"]}, "expert is 6, expected 0 to 5"),
        ({"rows": [*ROWS[:-1], "0,1,3,2,1,5,0.1"]}, "truncated or damaged"),
        ({"rows": [*ROWS[:-1], "0,1,3,2,1,five,0.1,1,0"]}, "truncated or damaged"),
        ({"rows": []}, "no rows"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path, change, said):
    path = written(tmp_path, **change)
    with pytest.raises(ValueError, match=said) as error:
        reader.read(path)
    assert str(path) in str(error.value)


@needs_shared_traces
def test_the_recorded_trace():
    trace = reader.read(SHARED_TRACES / "bigmoeonedge_qwen3_30b" / "qwen.route.csv")
    assert trace.shape == (156, 48, 6)
    assert (trace.tokens.phase == Phase.PREFILL).sum() == 28
    assert (trace.experts != NO_EXPERT).sum() == 44_766
    assert sorted(set(trace.header.expert_bytes)) == [2_654_208, 3_059_712]
    last = trace.experts[trace.tokens.phase == Phase.PREFILL, -1]
    assert (last[:-1] == NO_EXPERT).all(), "the last layer routes one prefill token only"
    assert trace.header.gate_weight_kind == "normalised"
    np.testing.assert_allclose(trace.gate_weights[28:].astype(float).sum(2), 1, atol=5e-3)
