"""static: what the plan placed stays; nothing is admitted, evicted or prefetched.

Reference: Fiddler (Kamahori et al. 2024) keeps the popular experts, KTransformers its `frequency`
placement; the choice of residents is the planner's, so this policy is empty. Floor 1.
"""

from __future__ import annotations

from numba import njit

from moelab.policies.policy import Policy
from moelab.policies.signature import ADMIT, EVICT, PREFETCH
from moelab.source_stamp import stamped


@njit(cache=True)
@stamped
def decide(
    clock, step, layer, flags, experts, token_counts, gate_sums, next_use, candidate_scores, stale_experts, resident,
    expert_bytes, free_slots, free_bytes, upload_budget, float_parameters, int_parameters, float_state, int_state,
    admit, evict, prefetch, num_out,
):  # fmt: skip
    """Nothing; arguments in ``signature``."""
    num_out[ADMIT] = 0
    num_out[EVICT] = 0
    num_out[PREFETCH] = 0


POLICY = Policy(
    name="static", decide=decide, reference="Fiddler, arXiv 2402.07033; KTransformers frequency", parameters={}
)
