"""What the twins share: residents with a capacity, and filling on demand."""

from __future__ import annotations

from dataclasses import dataclass, field

NEVER = 2**63 - 1


@dataclass
class NaiveRequest:
    """One request: ``keys`` (layer, expert) in order; maps by key; ``scores`` rows of the router, if recorded."""

    clock: int
    step: int
    layer: int
    keys: list
    counts: dict
    gate_sums: dict
    flags: int = 0
    next_use: dict = field(default_factory=dict)
    scores: list = field(default_factory=list)
    stale: list = field(default_factory=list)


class NaiveCache:
    """Residents per pool with a capacity in slots or bytes."""

    def __init__(self, trace, *, slots_per_layer=None, slots=None, capacity_bytes=None, resident=(), pinned=(),
                 upload_budget=None, overflow=False, parameters=None, first_use=None):  # fmt: skip
        self.num_layers, self.num_experts = trace.header.num_layers, trace.header.num_experts
        self.per_layer = slots_per_layer is not None
        self.limit = slots_per_layer if self.per_layer else slots if slots is not None else capacity_bytes
        self.size_of = (
            (lambda key: trace.header.expert_bytes[key[0]]) if capacity_bytes is not None else (lambda key: 1)
        )
        self.residents = set(resident)
        self.pinned = set(pinned)
        self.budget = upload_budget if upload_budget is not None else 10**9
        self.overflow = overflow
        self.parameters = parameters or {}
        self.first_use = first_use or {}
        self.start()

    def start(self):
        """Metadata of the initial residents."""

    def pool(self, key):
        return key[0] if self.per_layer else 0

    def pools(self):
        return range(self.num_layers if self.per_layer else 1)

    def initial(self):
        """Initial residents that may go, ascending."""
        return sorted(self.residents - self.pinned)

    def capacity(self, pool):
        """What the policy has: the limit less what is pinned."""
        return self.limit - sum(self.size_of(k) for k in self.pinned & self.residents if self.pool(k) == pool)

    def free(self, layer):
        pool = layer if self.per_layer else 0
        return self.limit - sum(self.size_of(k) for k in self.residents if self.pool(k) == pool)

    def evictable(self, layer, used):
        pool = layer if self.per_layer else 0
        return [k for k in self.residents if self.pool(k) == pool and k not in used and k not in self.pinned]

    def decide(self, request):
        """(admitted keys, evicted keys, prefetched keys); the caller changes ``residents``."""
        raise NotImplementedError


class DemandFill(NaiveCache):
    """Evict until every wanted miss fits, or nobody may go; then admit what fits, in order."""

    def decide(self, request):
        self.see(request)
        misses = [k for k in request.keys if k not in self.residents]
        wanted = misses[: self.budget]
        free, evicted = self.free(request.layer), []
        while free < sum(map(self.size_of, wanted)):
            candidates = [k for k in self.evictable(request.layer, request.keys) if k not in evicted]
            if not candidates:
                break
            victim = self.victim(candidates, request)
            evicted.append(victim)
            self.evict(victim)
            free += self.size_of(victim)
        while not self.overflow and free < sum(map(self.size_of, wanted)):
            wanted.pop()
        for key in wanted:
            self.admit(key, request)
        return wanted, evicted, []

    def see(self, request):
        """What a request changes before anything is evicted."""

    def victim(self, candidates, request):
        raise NotImplementedError

    def evict(self, key):
        """A victim goes."""

    def admit(self, key, request):
        """A miss comes in."""
