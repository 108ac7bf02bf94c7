"""The only place where experts meet: y[t] = sum over slots, in slot order, of gate weight * output.

Float32, one product and one sum per slot, not contracted, so every node plan and worker count gives the
same bits. Also ``group_pairs``, which sorts the (token, slot) pairs by expert. Floor 1.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import carray, njit

from moelab.domain.trace import NO_EXPERT
from moelab.kernels.jit.memory import pointer, record_at
from moelab.source_stamp import stamped


@njit(nogil=True, cache=True)
@stamped
def combine(pair_of_slot, gate_weights, output_address, output_stride, y, token_start, token_stop):
    """``y[token_start:token_stop]`` [T, H] from ``output`` [pairs, output_stride]; y is overwritten."""
    hidden_size = y.shape[1]
    for t in range(token_start, token_stop):
        row = y[t]
        for h in range(hidden_size):
            row[h] = np.float32(0.0)
        for k in range(pair_of_slot.shape[1]):
            pair = pair_of_slot[t, k]
            if pair < 0:
                continue
            weight = gate_weights[t, k]
            values = carray(pointer(output_address + pair * output_stride * 4), hidden_size, np.float32)
            for h in range(hidden_size):
                row[h] = row[h] + weight * values[h]


@njit(nogil=True, cache=True)
@stamped
def group_pairs(job_address, expert_ids, address_of_expert, count, pair_of_slot):
    """Fill the job's expert_weights, pair_start, token_of_pair; experts in rising order of id.

    ``count`` int64 [E + 1] is scratch, all zero before and after. Returns the number of active experts,
    or -1 - t if token t names an expert that does not exist.
    """
    job = record_at(job_address)
    num_tokens, top_k = expert_ids.shape
    num_experts = address_of_expert.shape[0]
    for t in range(num_tokens):
        for k in range(top_k):
            expert = np.int64(expert_ids[t, k])
            if expert == NO_EXPERT:
                continue
            if expert < 0 or expert >= num_experts:
                for e in range(num_experts):
                    count[e] = 0
                return -1 - t
            count[expert] += 1
    weights = carray(pointer(job.expert_weights), num_experts, np.int64)
    pair_start = carray(pointer(job.pair_start), num_experts + 1, np.int64)
    token_of_pair = carray(pointer(job.token_of_pair), num_tokens * top_k, np.int32)
    active = 0
    total = 0
    for e in range(num_experts):
        if count[e] > 0:
            weights[active] = address_of_expert[e]
            pair_start[active] = total
            following = total + count[e]
            count[e] = total
            total = following
            active += 1
    pair_start[active] = total
    for t in range(num_tokens):
        for k in range(top_k):
            expert = np.int64(expert_ids[t, k])
            if expert == NO_EXPERT:
                pair_of_slot[t, k] = -1
                continue
            pair = count[expert]
            count[expert] = pair + 1
            token_of_pair[pair] = t
            pair_of_slot[t, k] = pair
    for e in range(num_experts):
        count[e] = 0
    job.num_experts = active
    job.num_pairs = total
    job.num_tokens = num_tokens
    return active
