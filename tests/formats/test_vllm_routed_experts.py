"""What the file does not say and the reader assumed stands in the header."""

import numpy as np

from moelab.domain.trace import Phase
from moelab.formats import vllm_routed_experts


def test_assumptions_stand_in_the_provenance(tmp_path):
    path = tmp_path / "request.npy"
    np.save(path, np.array([[[0, 5], [1, 2]], [[3, 4], [0, 1]], [[1, 2], [2, 3]]], np.uint8))
    assumed = vllm_routed_experts.read(path)
    assert assumed.header.num_experts == 6
    assert "E taken as the largest id + 1" in assumed.header.provenance
    assert "every token taken as decode" in assumed.header.provenance
    told = vllm_routed_experts.read(path, num_experts=8, num_prompt_tokens=2)
    assert told.header.num_experts == 8
    assert "E taken" not in told.header.provenance
    assert "the first 2 tokens taken as the prompt" in told.header.provenance
    assert told.tokens.phase.tolist() == [Phase.PREFILL, Phase.PREFILL, Phase.DECODE]
