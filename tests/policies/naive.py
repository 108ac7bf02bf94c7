"""The simulator's twin: groups a trace into requests and replays it through a policy's twin (``twins``)."""

from __future__ import annotations

from collections import defaultdict

from tests.policies.twins import TWINS
from tests.policies.twins.cache import NEVER, NaiveRequest

NO_EXPERT = 65535


def naive_requests(trace):
    """List of (clock, step index, layer, {expert: (count, gate sum)} in order of last appearance)."""
    import numpy as np

    rows_of_step = rows_by_step(trace)
    out = []
    for index, step in enumerate(sorted(rows_of_step)):
        for layer in range(trace.header.num_layers):
            used = {}
            for row in rows_of_step[step]:
                for expert, weight in zip(trace.experts[row, layer], trace.gate_weights[row, layer], strict=True):
                    if expert == NO_EXPERT:
                        continue
                    count, total = used.pop(int(expert), (0, np.float32(0)))
                    used[int(expert)] = (count + 1, np.float32(total + np.float32(weight)))
            out.append((len(out), index, layer, used))
    return out


def rows_by_step(trace):
    """{step: token rows}."""
    rows = defaultdict(list)
    for row, step in enumerate(trace.tokens.step.tolist()):
        rows[step].append(row)
    return rows


def flags_by_step(trace):
    """{step: flags} as ``signature`` has them: prefill 1, decode 2, a request's first step 4.

    The step after its last 8.
    """
    rows, request, phase = rows_by_step(trace), trace.tokens.request.tolist(), trace.tokens.phase.tolist()
    steps = sorted(rows)
    flags = {step: 0 for step in steps}
    for index, step in enumerate(steps):
        for row in rows[step]:
            flags[step] |= 1 << phase[row]
            if request[row] not in {request[r] for s in steps[:index] for r in rows[s]}:
                flags[step] |= 4
        before = {request[r] for r in rows[steps[index - 1]]} if index else set()
        if before - {request[r] for s in steps[index:] for r in rows[s]}:
            flags[step] |= 8
    return flags


def replay(trace, policy, **capacity):
    """[(hits, misses, admitted, evicted, prefetched keys, routed hits, routings)] per request, and final residents."""
    requests = naive_requests(trace)
    rows_of_step, flags_of_step = rows_by_step(trace), flags_by_step(trace)
    steps = sorted(rows_of_step)
    scores, stale = trace.extras.get("candidate_scores"), trace.extras.get("stale_gate_experts")
    uses = defaultdict(list)
    for clock, _, layer, used in requests:
        for expert in used:
            uses[layer, expert].append(clock)
    place_of = {(layer, e): i for _, _, layer, used in requests for i, e in enumerate(used)}  # in the last request

    def future(key, clock):
        """All uses after a clock: what returns sooner is smaller; equal futures by place in their last request."""
        later = tuple(c for c in uses[key] if c > clock)
        return (*later, NEVER, place_of[key]) if later else (NEVER,)

    cache = TWINS[policy](trace, first_use={key: future(key, -1) for key in uses}, **capacity)
    out = []
    for clock, index, layer, used in requests:
        keys = [(layer, e) for e in used]
        rows = rows_of_step[steps[index]]
        request = NaiveRequest(
            clock=clock, step=steps[index], layer=layer, keys=keys,
            counts={(layer, e): count for e, (count, _) in used.items()},
            gate_sums={(layer, e): total for e, (_, total) in used.items()},
            flags=flags_of_step[steps[index]],
            next_use={k: future(k, clock) for k in keys},
            scores=[] if scores is None else [scores[row, layer] for row in rows],
        )  # fmt: skip
        if stale is not None and layer + 1 < trace.header.num_layers:
            named = [int(e) for row in rows for e in stale[row, layer + 1] if e < trace.header.num_experts]
            request.stale = list(dict.fromkeys(named))
        hits = [k for k in keys if k in cache.residents]
        routed_hits = sum(request.counts[k] for k in hits)
        admitted, evicted, prefetched = cache.decide(request)
        cache.residents -= set(evicted)
        cache.residents |= set(admitted) | set(prefetched)
        routings = sum(request.counts.values())
        out.append((len(hits), len(keys) - len(hits), admitted, evicted, prefetched, routed_hits, routings))
    return out, cache.residents
