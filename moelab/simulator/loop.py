"""The replay loop: every request of a trace through one policy, compiled once for all policies.  Floor 2.

The policy comes in as a value of the type ``DECIDE_FUNCTION``; what it decides is checked and applied by
``policies.contract``, the same code the live engine calls. The loop runs a stretch of requests and
stops early where the log is full, so that the caller can show progress, cancel and go on; all state
lies in arrays. Does not know plans, bytes per node or time (``simulate`` does).

Numba keys its disk cache by this file alone; the contract's checksum is therefore frozen into the
function, so that a changed rule never runs as its old self.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from moelab.policies.contract import apply_decision, source_stamp
from moelab.policies.signature import (
    ADMIT,
    DECIDE_ARGUMENTS,
    DECIDE_FUNCTION,
    EVICT,
    FLAG_DECODE,
    FLAG_PREFILL,
    PREFETCH,
)

HITS, MISSES, UPLOADS, PREFETCHES, EVICTIONS, ROUTED_HITS, ROUTINGS, LATE = range(8)
"""Columns of ``counts`` [R, 8]: distinct hits, distinct misses, uploads (admitted), prefetches, evictions,
routings that hit, routings, late copies (0 in the simulator: its copies arrive in time)."""

NUM_COLUMNS = 8
READ, COPIED = 0, 1
"""First index of ``totals`` [2, 3, L, E]: misses read at home, experts copied to a fast tier (uploads and
prefetches); second index the phase (prefill, decode, mixed)."""

LOG_COLUMNS = ("clock", "kind", "layer", "expert", "tier")

_i64 = types.int64
_a = DECIDE_ARGUMENTS
_loop_arguments = (
    DECIDE_FUNCTION,
    _i64,  # first request
    _i64,  # stop request
    _i64[::1],  # offsets
    _a["experts"],
    _a["token_counts"],
    _a["gate_sums"],
    _i64[::1],  # next_use, length 0 unless an oracle
    _i64[::1],  # step [S]
    _i64[::1],  # first_token [S + 1]
    _i64[::1],  # flags [S]
    types.Array(types.uint16, 3, "C", readonly=True),  # candidate scores as float16 bits [T, L, E] or [0, 0, 0]
    types.Array(types.uint16, 3, "C", readonly=True),  # stale-gate experts [T, L, K] or [0, 0, 0]
    types.float32[::1],  # float of half
    _a["resident"],
    types.boolean[:, ::1],  # pinned
    _a["expert_bytes"],
    _a["free_slots"],
    _a["free_bytes"],
    _i64,  # upload budget
    _i64,  # flags of the whole run (overflow)
    _a["float_parameters"],
    _a["int_parameters"],
    _a["float_state"],
    _a["int_state"],
    _a["candidate_scores"],  # buffers that the loop hands to the policy: scores of the largest step [B, E] or [0, 0]
    _a["stale_experts"],  # [E]
    _i64[::1],  # clock at which an expert entered stale_experts, -1 at first [E]
    _a["admit"],
    _a["evict"],
    _a["prefetch"],
    _a["num_out"],
    types.int32[:, ::1],  # counts
    _i64[:, :, :, ::1],  # totals
    _i64[:, ::1],  # log, [0, 5] without one
    _i64[::1],  # progress [7]: log rows used, broken rule, where[5]
)


def _borrowed(_typing_context, array):
    """The same array without its reference count: the caller of the loop keeps the memory alive.

    Compiled functions count references of every array argument and slice; atomics cost more than
    a policy's own work.
    """

    def codegen(context, builder, signature, arguments):
        view = make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), codegen


borrowed: Any = intrinsic(_borrowed)


def _build_loop(contract_stamp: int):
    @njit(_i64(*_loop_arguments), cache=True, nogil=True)
    def run(
        decide, first, stop, offsets, experts, token_counts, gate_sums, next_use, step_of, first_token, flags_of,
        half_scores, stale, float_of_half, resident, pinned, expert_bytes, free_slots, free_bytes, upload_budget,
        run_flags, float_parameters, int_parameters, float_state, int_state,
        scores, stale_buffer, stale_clock, admit, evict, prefetch, num_out, counts, totals, log, progress,
    ):  # fmt: skip
        """Run requests [first, stop); return the first request that was not run."""
        _ = contract_stamp
        b_experts = borrowed(experts)
        b_token_counts = borrowed(token_counts)
        b_gate_sums = borrowed(gate_sums)
        b_next_use = borrowed(next_use)
        b_scores = borrowed(scores)
        b_stale_buffer = borrowed(stale_buffer)
        b_resident = borrowed(resident)
        b_expert_bytes = borrowed(expert_bytes)
        b_free_slots = borrowed(free_slots)
        b_free_bytes = borrowed(free_bytes)
        b_float_parameters = borrowed(float_parameters)
        b_int_parameters = borrowed(int_parameters)
        b_float_state = borrowed(float_state)
        b_int_state = borrowed(int_state)
        b_admit = borrowed(admit)
        b_evict = borrowed(evict)
        b_prefetch = borrowed(prefetch)
        b_num_out = borrowed(num_out)
        b_pinned = borrowed(pinned)
        num_layers, num_experts = resident.shape
        is_oracle, has_scores, is_logged = len(next_use) > 0, len(half_scores) > 0, len(log) > 0
        has_stale = len(stale) > 0
        where = progress[2:]
        for clock in range(first, stop):
            step, layer = clock // num_layers, clock % num_layers
            flags = flags_of[step] | run_flags
            begin, end = offsets[clock], offsets[clock + 1]
            if is_logged and len(log) - progress[0] < len(admit) + len(evict) + len(prefetch):
                return clock
            phase = 2
            if flags & (FLAG_PREFILL | FLAG_DECODE) == FLAG_PREFILL:
                phase = 0
            elif flags & (FLAG_PREFILL | FLAG_DECODE) == FLAG_DECODE:
                phase = 1
            hits, routed_hits, routings = 0, 0, 0
            for i in range(begin, end):
                routings += token_counts[i]
                if resident[layer, experts[i]] != 0:
                    hits += 1
                    routed_hits += token_counts[i]
                else:
                    totals[READ, phase, layer, experts[i]] += 1
            num_rows = 0
            if has_scores:
                for token in range(first_token[step], first_token[step + 1]):
                    for expert in range(num_experts):
                        scores[num_rows, expert] = float_of_half[half_scores[token, layer, expert]]
                    num_rows += 1
            num_stale = 0
            if has_stale and layer + 1 < num_layers:
                for token in range(first_token[step], first_token[step + 1]):
                    for rank in range(stale.shape[2]):
                        expert = stale[token, layer + 1, rank]
                        if expert < num_experts and stale_clock[expert] != clock:
                            stale_clock[expert] = clock
                            stale_buffer[num_stale] = expert
                            num_stale += 1
            decide(
                clock, step_of[step], layer, flags, b_experts[begin:end], b_token_counts[begin:end],
                b_gate_sums[begin:end], b_next_use[begin:end] if is_oracle else b_next_use[:0], b_scores[:num_rows],
                b_stale_buffer[:num_stale], b_resident, b_expert_bytes, b_free_slots, b_free_bytes, upload_budget,
                b_float_parameters, b_int_parameters, b_float_state, b_int_state, b_admit, b_evict, b_prefetch,
                b_num_out,
            )  # fmt: skip
            num_admit, num_evict, num_prefetch = num_out[ADMIT], num_out[EVICT], num_out[PREFETCH]
            if num_admit != 0 or num_evict != 0 or num_prefetch != 0 or run_flags != 0:
                rule = apply_decision(
                    clock, layer, flags, b_experts[begin:end], b_resident, b_pinned, b_expert_bytes, b_free_slots,
                    b_free_bytes, upload_budget, b_admit, b_evict, b_prefetch, b_num_out, where,
                )  # fmt: skip
                if rule != 0:
                    progress[1] = rule
                    return clock
                for i in range(num_admit):
                    totals[COPIED, phase, layer, admit[i, 0]] += 1
                for i in range(num_prefetch):
                    totals[COPIED, phase, prefetch[i, 0], prefetch[i, 1]] += 1
                if is_logged:
                    progress[0] = _write_log(log, progress[0], clock, layer, admit, evict, prefetch, num_out)
            counts[clock, HITS] = hits
            counts[clock, MISSES] = end - begin - hits
            counts[clock, UPLOADS] = num_admit
            counts[clock, PREFETCHES] = num_prefetch
            counts[clock, EVICTIONS] = num_evict
            counts[clock, ROUTED_HITS] = routed_hits
            counts[clock, ROUTINGS] = routings
        return stop

    return run


@njit(_i64(_i64[:, ::1], _i64, _i64, _i64, _i64, _i64, _i64), cache=True)
def _write_row(log, row, clock, kind, layer, expert, tier):
    log[row, 0] = clock
    log[row, 1] = kind
    log[row, 2] = layer
    log[row, 3] = expert
    log[row, 4] = tier
    return row + 1


@njit(cache=True)
def _write_log(log, row, clock, layer, admit, evict, prefetch, num_out):
    """Append the decisions in the order they were applied; return the next free row."""
    for i in range(num_out[EVICT]):
        row = _write_row(log, row, clock, EVICT, evict[i, 0], evict[i, 1], -1)
    for i in range(num_out[ADMIT]):
        row = _write_row(log, row, clock, ADMIT, layer, admit[i, 0], admit[i, 1])
    for i in range(num_out[PREFETCH]):
        row = _write_row(log, row, clock, PREFETCH, prefetch[i, 0], prefetch[i, 1], prefetch[i, 2])
    return row


run = _build_loop(source_stamp())
