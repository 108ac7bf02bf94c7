"""The replay loop: every request of a trace through one policy, compiled once for all policies.  Floor 2.

The policy comes in as a value of the type ``DECIDE_FUNCTION``; what it decides is checked and applied by
``policies.contract``, the same code the live engine calls. The loop runs a stretch of requests and
stops early where the log is full, so that the caller can show progress, cancel and go on; all state
lies in arrays. Does not know plans, bytes per node or time (``simulate`` does).

Two orders of requests with equal results: as they came, or, where each layer has its own pool and the policy keeps its
layers apart (``Policy.layers_are_apart``), all steps of one layer after those of another: what a policy remembers of
one layer fits the first cache, of 60 layers not the second.

Numba keys its disk cache by this file and the signature; the type of the view is named after the sources of
``policies``, so that a changed rule never runs as its old self.
"""

from __future__ import annotations

from numba import types

from moelab.compiled_on_use import on_use
from moelab.policies.compiled import at, compiled
from moelab.policies.contract import close_request, open_request
from moelab.policies.counts import (
    EVICTIONS,
    HITS,
    LAYER_STEPS,
    MISSES,
    PREFETCHES,
    ROUTED_HITS,
    ROUTINGS,
    UPLOADS,
)
from moelab.policies.optional_arrays import read_scores, read_stale
from moelab.policies.signature import ADMIT, EVICT, FIELDS, FLAG_DECODE, FLAG_PREFILL, PREFETCH
from moelab.policies.view import DECIDE_FUNCTION, VIEW

READ, COPIED = 0, 1
"""First index of ``totals`` [2, 3, L, E]: misses read at home, experts copied to a fast tier (uploads and
prefetches); second index the phase (prefill, decode, mixed)."""

LOG_COLUMNS = ("clock", "kind", "layer", "expert", "tier")

_i64 = types.int64
_loop_arguments = (
    DECIDE_FUNCTION,
    VIEW,
    _i64,  # first request
    _i64,  # stop request
    types.boolean,  # do the requests lie layer by layer (``RequestsByLayer``), or in order of time?
    _i64[::1],  # offsets
    FIELDS["experts"],
    FIELDS["token_counts"],
    FIELDS["gate_sums"],
    FIELDS["next_use"],  # length 0 unless an oracle
    _i64[::1],  # step [S]
    _i64[::1],  # first_token [S + 1]
    _i64[::1],  # flags [S]
    _i64,  # flags of the whole run (overflow)
    types.Array(types.uint16, 3, "C", readonly=True),  # candidate scores as float16 bits [T, L, E] or [0, 0, 0]
    types.Array(types.uint16, 3, "C", readonly=True),  # stale-gate experts [T, L, K] or [0, 0, 0]
    types.float32[::1],  # float of half
    FIELDS["hits"],  # buffers: places of hits and misses [E] each
    FIELDS["misses"],
    FIELDS["candidate_scores"],  # scores of the largest step [B, E] or [0, 0]
    FIELDS["stale_experts"],  # [E]
    _i64[::1],  # clock at which an expert entered stale_experts, -1 at first [E]
    types.int32[:, ::1],  # counts [R, 8], [0, 8] where only the sums are wanted
    _i64[:, :, ::1],  # sums [3, L, 9]
    types.int32[:, :, :, ::1],  # tally [3, L, E, 2]: totals of this stretch, both kinds side by side
    _i64[:, ::1],  # log, [0, 5] without one
    _i64[::1],  # progress [7]: log rows used, broken rule, where[5]
)


@compiled
def _write_row(log, row, clock, kind, layer, expert, tier):
    log[row, 0] = clock
    log[row, 1] = kind
    log[row, 2] = layer
    log[row, 3] = expert
    log[row, 4] = tier
    return row + 1


@compiled
def _write_log(log, row, clock, layer, admit, evict, prefetch, num_out):
    """Append the decisions in the order they were applied; return the next free row."""
    for i in range(num_out[EVICT]):
        row = _write_row(log, row, clock, EVICT, evict[i, 0], evict[i, 1], -1)
    for i in range(num_out[ADMIT]):
        row = _write_row(log, row, clock, ADMIT, layer, admit[i, 0], admit[i, 1])
    for i in range(num_out[PREFETCH]):
        row = _write_row(log, row, clock, PREFETCH, prefetch[i, 0], prefetch[i, 1], prefetch[i, 2])
    return row


@on_use(_i64(*_loop_arguments), rooms=("policies",), _nrt=False)
def run(
    decide, view, first, stop, by_layer, offsets, experts, token_counts, gate_sums, next_use, step_of, first_token,
    flags_of, run_flags, half_scores, stale, float_of_half, hits, misses, scores, stale_buffer, stale_clock, counts,
    sums, tally, log, progress,
):  # fmt: skip
    """Run requests [first, stop) in the order in which they lie; return the first that was not run."""
    num_layers, num_experts = view.resident.shape
    admit, evict, prefetch, num_out = view.admit, view.evict, view.prefetch, view.num_out
    longest = len(admit) + len(evict) + len(prefetch)
    where = progress[2:]
    num_steps = len(step_of)
    step, layer = first // num_layers, first % num_layers - 1
    if by_layer:
        step, layer = first % num_steps - 1, first // num_steps
    for number in range(first, stop):
        if by_layer:
            step += 1
            if step == num_steps:
                step, layer = 0, layer + 1
        else:
            layer += 1
            if layer == num_layers:
                step, layer = step + 1, 0
        clock = step * num_layers + layer
        flags = flags_of[step] | run_flags
        begin, end = offsets[number], offsets[number + 1]
        if len(log) > 0 and len(log) - progress[0] < longest:
            return number
        phase = 2
        if flags & (FLAG_PREFILL | FLAG_DECODE) == FLAG_PREFILL:
            phase = 0
        elif flags & (FLAG_PREFILL | FLAG_DECODE) == FLAG_DECODE:
            phase = 1
        view.clock = clock
        view.step = step_of[step]
        view.layer = layer
        view.flags = flags
        view.experts = experts[begin:end]
        view.token_counts = token_counts[begin:end]
        view.gate_sums = gate_sums[begin:end]
        if len(next_use) > 0:
            view.next_use = next_use[begin:end]
        first_row, stop_row = first_token[step], first_token[step + 1]
        if len(half_scores) > 0:
            num_rows = read_scores(half_scores, float_of_half, first_row, stop_row, layer, scores)
            view.candidate_scores = scores[:num_rows]
        if len(stale) > 0:
            num_stale = 0
            if layer + 1 < num_layers:
                num_stale = read_stale(
                    stale, first_row, stop_row, layer + 1, clock, num_experts, stale_buffer, stale_clock
                )
            view.stale_experts = stale_buffer[:num_stale]
        open_request(view, hits, misses)
        missed, routed_hits, routings = view.misses, 0, 0
        of_phase = tally[phase, layer]
        for i in range(begin, end):
            routings += token_counts[at(i)]
        for j in missed:
            of_phase[at(experts[at(begin + j)]), READ] += 1
            routed_hits -= token_counts[at(begin + j)]
        decide(view)
        num_admit, num_evict, num_prefetch = num_out[ADMIT], num_out[EVICT], num_out[PREFETCH]
        rule = close_request(view, where)
        if rule != 0:
            progress[1] = rule
            return number
        for i in range(num_admit):
            of_phase[at(admit[at(i), 0]), COPIED] += 1
        for i in range(num_prefetch):
            tally[phase, prefetch[i, 0], prefetch[i, 1], COPIED] += 1
        if len(log) > 0:
            progress[0] = _write_log(log, progress[0], clock, layer, admit, evict, prefetch, num_out)
        added = sums[phase, layer]
        added[HITS] += end - begin - len(missed)
        added[MISSES] += len(missed)
        added[UPLOADS] += num_admit
        added[PREFETCHES] += num_prefetch
        added[EVICTIONS] += num_evict
        added[ROUTED_HITS] += routings + routed_hits
        added[ROUTINGS] += routings
        added[LAYER_STEPS] += routings > 0
        if len(counts) > 0:
            row = counts[clock]
            row[HITS] = end - begin - len(missed)
            row[MISSES] = len(missed)
            row[UPLOADS] = num_admit
            row[PREFETCHES] = num_prefetch
            row[EVICTIONS] = num_evict
            row[ROUTED_HITS] = routings + routed_hits
            row[ROUTINGS] = routings
    return stop
