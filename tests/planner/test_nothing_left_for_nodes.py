"""Fast tiers that serve every expert: nothing is left of K/N, the ratio to it is not known, nobody divides by 0."""

import warnings

import numpy as np

from moelab.domain.plan import Plan
from moelab.planner import NODE_PLANNERS
from moelab.planner.node_score import NodeScore
from tests.seeded_traces import seeded_trace


def test_ratio_is_none_where_the_fast_tier_serves_all(tmp_path):
    trace = seeded_trace(4, num_layers=2, num_experts=8, num_requests=24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = NODE_PLANNERS["joint"](trace, nodes=2, fast_slots=[16], held_out=0.5)
    plan.save(tmp_path / "plan.json")
    for prediction in (plan.prediction, Plan.load(tmp_path / "plan.json").prediction):
        assert prediction.get("heldout_ratio_to_ideal") is None
        assert prediction.get("train_ratio_to_ideal") is None
        assert prediction["ideal"] == 0.0


def test_a_ratio_of_some_is_maxima_over_ideal():
    score = NodeScore(np.array([3.0, 2.0]), np.array([2.0, 0.0]), np.array([1, 1]))
    assert score.ratio == 2.5
    nothing = NodeScore(np.array([3.0]), np.array([0.0]), np.array([1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(nothing.ratio)
