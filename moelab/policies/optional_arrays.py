"""What a policy may be told beyond the routing: candidate scores and stale-gate ids, as a trace keeps them.  Floor 1.

The simulator's loop and the live session read them through the same two functions. Scores are float16 by their bits.
Does not know requests or residency.
"""

from __future__ import annotations

from moelab.policies.compiled import compiled


@compiled
def read_scores(half_scores, float_of_half, first, stop, place, scores):
    """Router scores of the tokens [first, stop) of ``half_scores`` [T, P, E] into ``scores`` float32; their number."""
    num_rows = 0
    for token in range(first, stop):
        for expert in range(scores.shape[1]):
            scores[num_rows, expert] = float_of_half[half_scores[token, place, expert]]
        num_rows += 1
    return num_rows


@compiled
def read_stale(stale, first, stop, place, clock, num_experts, experts, seen_at):
    """Distinct experts of ``stale`` [T, P, K] in order of first appearance into ``experts``; return their number.

    ``seen_at`` [E] holds the clock at which an expert was last read.
    """
    num_stale = 0
    for token in range(first, stop):
        for rank in range(stale.shape[2]):
            expert = stale[token, place, rank]
            if expert < num_experts and seen_at[expert] != clock:
                seen_at[expert] = clock
                experts[num_stale] = expert
                num_stale += 1
    return num_stale
