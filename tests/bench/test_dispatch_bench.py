"""bench dispatch: every shape has its row, with times above zero and a share of searches that were cut off."""

from moelab.bench import dispatch
from moelab.cli.bench import BENCHES


def test_rows(monkeypatch):
    monkeypatch.setattr(dispatch, "NUM_STEPS", 400)
    monkeypatch.setattr(dispatch, "NUM_SEARCHED", 200)
    result = dispatch.run(seconds=0.01)
    assert "dispatch" in BENCHES
    assert [(row["active_experts"], row["nodes"]) for row in result.rows] == list(dispatch.SHAPES)
    for row in result.rows:
        assert 0 < row["ns_equal_full"] < 1e6
        assert 0 < row["ns_equal_some"] < 1e6
        assert 0 <= row["bounded_share"] < 1
