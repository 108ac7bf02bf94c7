"""Naive Python twins of the policies: lists and dicts, written from the definitions, no Numba, no tricks.

``replay`` is the simulator's twin: it walks a trace and returns hits, misses and decisions per request.
"""

from __future__ import annotations

from collections import defaultdict

NEVER = 2**63 - 1
NO_EXPERT = 65535


def naive_requests(trace):
    """List of (clock, step index, layer, {expert: (count, gate sum)} in order of last appearance)."""
    import numpy as np

    rows_of_step = defaultdict(list)
    for row, step in enumerate(trace.tokens.step.tolist()):
        rows_of_step[step].append(row)
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


class NaiveCache:
    """Residents per pool with a capacity in slots or bytes."""

    def __init__(self, trace, *, slots_per_layer=None, slots=None, capacity_bytes=None, resident=(), pinned=(),
                 upload_budget=None, overflow=False):  # fmt: skip
        self.per_layer = slots_per_layer is not None
        self.limit = slots_per_layer if self.per_layer else slots if slots is not None else capacity_bytes
        self.size_of = (
            (lambda key: trace.header.expert_bytes[key[0]]) if capacity_bytes is not None else (lambda key: 1)
        )
        self.residents = set(resident)
        self.pinned = set(pinned)
        self.budget = upload_budget if upload_budget is not None else 10**9
        self.overflow = overflow

    def pool(self, key):
        return key[0] if self.per_layer else 0

    def free(self, layer):
        pool = layer if self.per_layer else 0
        return self.limit - sum(self.size_of(k) for k in self.residents if self.pool(k) == pool)

    def evictable(self, layer, used):
        pool = layer if self.per_layer else 0
        return [k for k in self.residents if self.pool(k) == pool and k not in used and k not in self.pinned]


class NaiveStatic(NaiveCache):
    def decide(self, clock, layer, keys, next_use):
        return [], []


class NaiveLRU(NaiveCache):
    """``order``: residents and more, oldest first."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.order = sorted(self.residents)

    def decide(self, clock, layer, keys, next_use):
        hits = [k for k in keys if k in self.residents]
        wanted = [k for k in keys if k not in self.residents][: self.budget]
        self.order = [k for k in self.order if k not in hits]
        victims = [k for k in self.order if k in self.evictable(layer, keys)]
        admitted, evicted = [], []
        if self.overflow:
            admitted = wanted
            free = self.free(layer) - sum(map(self.size_of, wanted))
            while free < 0 and victims:
                evicted.append(victims.pop(0))
                free += self.size_of(evicted[-1])
        else:
            free = self.free(layer)
            for key in wanted:
                while free < self.size_of(key) and victims:
                    evicted.append(victims.pop(0))
                    free += self.size_of(evicted[-1])
                if free < self.size_of(key):
                    break
                admitted.append(key)
                free -= self.size_of(key)
        self.order = [k for k in self.order if k not in evicted]
        self.order += [k for k in keys if k in hits or k in admitted]
        return admitted, evicted


class NaiveMinBypass(NaiveCache):
    """``returns``: next use of every resident; ``first_use`` for the initial ones."""

    def __init__(self, *args, first_use=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.returns = {k: first_use.get(k, (NEVER,)) for k in self.residents}

    def decide(self, clock, layer, keys, next_use):
        misses = [k for k in keys if k not in self.residents and next_use[k] != (NEVER,)]
        misses.sort(key=lambda k: next_use[k])  # stable: appearance breaks ties
        victims = sorted(self.evictable(layer, keys), key=lambda k: (self.returns[k], k))
        free = self.free(layer)
        admitted, evicted = [], []
        for key in misses[: self.budget]:
            while free < self.size_of(key) and victims and self.returns[victims[-1]] > next_use[key]:
                evicted.append(victims.pop())
                free += self.size_of(evicted[-1])
            if free < self.size_of(key):
                break
            admitted.append(key)
            free -= self.size_of(key)
        for key in keys:
            self.returns[key] = next_use[key]
        return admitted, evicted


TWINS = {"static": NaiveStatic, "lru": NaiveLRU, "min_bypass": NaiveMinBypass}


def replay(trace, policy, **capacity):
    """[(hits, misses, admitted keys, evicted keys, routed hits, routings)] per request, and final residents."""
    requests = naive_requests(trace)
    uses = defaultdict(list)
    for clock, _, layer, used in requests:
        for expert in used:
            uses[layer, expert].append(clock)
    place_of = {(layer, e): i for _, _, layer, used in requests for i, e in enumerate(used)}  # in the last request

    def future(key, clock):
        """All uses after a clock: what returns sooner is smaller; equal futures by place in their last request."""
        later = tuple(c for c in uses[key] if c > clock)
        return (*later, NEVER, place_of[key]) if later else (NEVER,)

    if policy == "min_bypass":
        capacity["first_use"] = {key: future(key, -1) for key in uses}
    cache = TWINS[policy](trace, **capacity)
    rows = []
    for clock, _, layer, used in requests:
        keys = [(layer, e) for e in used]
        next_use = {k: future(k, clock) for k in keys}
        hits = [k for k in keys if k in cache.residents]
        routed_hits = sum(used[k[1]][0] for k in hits)
        admitted, evicted = cache.decide(clock, layer, keys, next_use)
        cache.residents -= set(evicted)
        cache.residents |= set(admitted)
        routings = sum(count for count, _ in used.values())
        rows.append((len(hits), len(keys) - len(hits), admitted, evicted, routed_hits, routings))
    return rows, cache.residents
