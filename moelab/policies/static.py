"""static: what the plan placed stays; nothing is admitted, evicted or prefetched.

Reference: Fiddler (Kamahori et al. 2024) keeps the popular experts, KTransformers its `frequency`
placement; the choice of residents is the planner's, so this policy is empty. Floor 1.
"""

from __future__ import annotations

from moelab.policies.compiled import compiled
from moelab.policies.policy import Policy


@compiled
def decide(view):
    """Nothing: the answer is empty already."""


POLICY = Policy(
    name="static",
    fills=False,
    decide=decide,
    reference="Fiddler, arXiv 2402.07033; KTransformers frequency",
    parameters={},
    bypasses=True,
    layers_are_apart=True,
)
