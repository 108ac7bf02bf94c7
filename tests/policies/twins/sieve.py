"""Twin of sieve: one list per pool, oldest first, and the hand as the key it stands on (None: before the oldest)."""

from tests.policies.twins.cache import DemandFill


class Twin(DemandFill):
    def start(self):
        self.order = {p: [k for k in self.initial() if self.pool(k) == p] for p in self.pools()}
        self.hand = dict.fromkeys(self.pools())
        self.used = set()

    def see(self, request):
        self.used |= {k for k in request.keys if k in self.residents}

    def victim(self, candidates, request):
        pool = self.pool(candidates[0])
        order = self.order[pool]
        while True:
            key = self.hand[pool] if self.hand[pool] is not None else order[0]
            place = order.index(key)
            self.hand[pool] = order[place + 1] if place + 1 < len(order) else None
            if key in candidates:
                if key not in self.used:
                    return key
                self.used.remove(key)

    def evict(self, key):
        self.order[self.pool(key)].remove(key)

    def admit(self, key, request):
        self.order[self.pool(key)].append(key)
