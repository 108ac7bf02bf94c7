"""kt_dynamic: after each large prefill a layer's residents are replaced by the experts that this prefill used
most.

Reference: KTransformers ``dynamic-expert-update``: in a layerwise prefill of enough tokens the layer's n most
routed experts of that one batch take the place of its n residents; never in decode, no averaging. Where we
differ: what a request uses cannot be evicted by it, so the copies come at the layer's next requests, from then
on as residents that are not in use and the upload budget allow; KTransformers copies them within the prefill.
Enough is counted in routings (``min_routings``: tokens x top-k). Equal counts: the lower expert; places that no
routed expert fills stay as they are. n is the number of unpinned residents that the plan placed in the layer;
free room is not filled. State: ``wanted`` [L * E], ``is_pending`` [L]. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import compiled
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.signature import ADMIT, EVICT, FLAG_PREFILL, IN_USE, PREFETCH


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """Nothing pending."""
    return np.zeros(0, np.float64), np.zeros(setup.num_layers * (setup.num_experts + 1), np.int64)


@compiled
def decide(view):
    """Carry out what is pending in this layer, then look at a prefill."""
    if len(view.free_slots) == 0:
        return
    layer, (num_layers, num_experts) = view.layer, view.resident.shape
    resident, pinned = view.resident[layer], view.pinned[layer]
    wanted = view.int_state[layer * num_experts : (layer + 1) * num_experts]
    is_pending = view.int_state[num_layers * num_experts :]
    num_moved = 0
    num_admit = 0
    num_prefetch = 0
    if is_pending[layer]:
        victim = -1
        num_missing = 0
        for expert in range(num_experts):
            if not wanted[expert] or resident[expert] & ~IN_USE:
                continue
            num_missing += 1
            if num_moved == view.upload_budget:
                break
            victim += 1
            while victim < num_experts and (resident[victim] != 1 or pinned[victim] or wanted[victim]):
                victim += 1
            if victim == num_experts:
                break
            view.evict[num_moved, 0] = layer
            view.evict[num_moved, 1] = victim
            if resident[expert] == IN_USE:
                view.admit[num_admit, 0] = expert
                view.admit[num_admit, 1] = 0
                num_admit += 1
            else:
                view.prefetch[num_prefetch, 0] = layer
                view.prefetch[num_prefetch, 1] = expert
                view.prefetch[num_prefetch, 2] = 0
                num_prefetch += 1
            num_moved += 1
            num_missing -= 1
        is_pending[layer] = num_missing > 0
        view.num_out[EVICT] = num_moved
        view.num_out[ADMIT] = num_admit
        view.num_out[PREFETCH] = num_prefetch
    num_routings = 0
    for count in view.token_counts:
        num_routings += count
    if not view.flags & FLAG_PREFILL or num_routings < view.int_parameters[0]:
        return
    num_places = 0
    for expert in range(num_experts):
        num_places += resident[expert] & ~IN_USE == 1 and not pinned[expert]
        wanted[expert] = 0
    for _ in range(num_places):
        best = -1
        for i in range(len(view.experts)):
            expert = view.experts[i]
            if wanted[expert] or pinned[expert] or resident[expert] & ~IN_USE > 1:
                continue
            lead = 1 if best < 0 else view.token_counts[i] - view.token_counts[best]
            if lead > 0 or (lead == 0 and expert < view.experts[best]):
                best = i
        if best < 0:
            break
        wanted[view.experts[best]] = 1
    is_pending[layer] = 1


POLICY = Policy(
    name="kt_dynamic",
    decide=decide,
    reference="KTransformers dynamic-expert-update",
    parameters={"min_routings": 1},
    new_state=new_state,
    layers_are_apart=True,
    prefetches=True,
    fills=False,
)
