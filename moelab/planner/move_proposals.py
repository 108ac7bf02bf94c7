"""move_proposals: random changes of a placement that keep every byte budget.  Floor 3.

Four kinds: two experts of a layer swap what they have (copies, pieces, places on a fast tier; a place on a fast tier
also with an expert of another layer); a replica on a node passes from one expert to another, of any layer, so that
memory flows to the layers where it pays; of two experts with one copy each, of any layers, the copies change nodes; one
copy goes where there is room. Does not know what they gain.
"""

from __future__ import annotations

from moelab.planner.compiled import compiled
from moelab.planner.draws import below, unit
from moelab.planner.step_maximum import CUT

NOBODY = -1
_TRIES = 12


@compiled
def propose(draws, code, layer, first_layer, last_layer, num_experts, num_nodes, keeps_fast):
    """(key a, key b, new mask of a, of b); a is ``NOBODY`` where nothing was found, b where only a changes.

    ``keeps_fast``: what is on a fast tier stays there and nothing else comes, so such experts are drawn again.
    """
    first = layer * num_experts
    kind = unit(draws)
    nodes = (1 << num_nodes) - 1
    a = first + below(draws, num_experts)
    b = first + below(draws, num_experts)
    if keeps_fast:
        for _ in range(_TRIES):
            a = first + below(draws, num_experts) if code[a] > nodes else a
            b = first + below(draws, num_experts) if code[b] > nodes else b
        if code[a] > nodes or code[b] > nodes:
            return NOBODY, NOBODY, 0, 0
    if kind < 0.6 or num_nodes == 1:
        if code[a] > nodes and unit(draws) < 0.3:
            b = first_layer * num_experts + below(draws, (last_layer - first_layer) * num_experts)
            if b // num_experts != layer and (code[b] == CUT or code[b] > nodes):
                return NOBODY, NOBODY, 0, 0
        return (a, b, code[b], code[a]) if code[a] != code[b] else (NOBODY, NOBODY, 0, 0)
    if unit(draws) < 0.5:
        b = first_layer * num_experts + below(draws, (last_layer - first_layer) * num_experts)
    if kind < 0.85:
        for _ in range(_TRIES):
            if code[a] & (code[a] - 1) and code[a] <= nodes:
                break
            a = first + below(draws, num_experts)
        tier = below(draws, num_nodes)
        if not code[a] & (code[a] - 1) or code[a] > nodes or not code[a] >> tier & 1:
            return NOBODY, NOBODY, 0, 0
        if a == b or not 0 < code[b] <= nodes or code[b] >> tier & 1:
            return NOBODY, NOBODY, 0, 0
        return a, b, code[a] & ~(1 << tier), code[b] | 1 << tier
    if not _is_single(code[a]) or code[a] > nodes:
        return NOBODY, NOBODY, 0, 0
    if kind < 0.97:
        if not _is_single(code[b]) or code[b] > nodes or code[a] == code[b]:
            return NOBODY, NOBODY, 0, 0
        return a, b, code[b], code[a]
    target = 1 << below(draws, num_nodes)
    return (a, NOBODY, target, 0) if target != code[a] else (NOBODY, NOBODY, 0, 0)


@compiled
def _is_single(mask):
    return mask > 0 and not mask & (mask - 1)


@compiled
def fits(code, room, tier_bytes, num_experts, a, b, new_a, new_b):
    """Do all tiers still hold their copies? Swaps within a layer change no tier's bytes."""
    layer_a = a // num_experts
    if b != NOBODY and layer_a == b // num_experts and new_a == code[b] and new_b == code[a]:
        return True
    is_room = True
    for tier in range(len(room)):
        need = tier_bytes[tier, layer_a] * ((new_a >> tier & 1) - (code[a] >> tier & 1))
        if b != NOBODY:
            need += tier_bytes[tier, b // num_experts] * ((new_b >> tier & 1) - (code[b] >> tier & 1))
        is_room &= need <= max(room[tier], 0)
    return is_room


@compiled
def take_room(code, room, tier_bytes, num_experts, a, b, new_a, new_b):
    """Carry a move out: masks and free bytes."""
    layer_a = a // num_experts
    is_swap = b != NOBODY and layer_a == b // num_experts and new_a == code[b] and new_b == code[a]
    if not is_swap:
        for tier in range(len(room)):
            room[tier] -= tier_bytes[tier, layer_a] * ((new_a >> tier & 1) - (code[a] >> tier & 1))
            if b != NOBODY:
                room[tier] -= tier_bytes[tier, b // num_experts] * ((new_b >> tier & 1) - (code[b] >> tier & 1))
    code[a] = new_a
    if b != NOBODY:
        code[b] = new_b
