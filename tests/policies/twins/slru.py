"""Twin of slru: two lists per pool, oldest first."""

from tests.policies.twins.cache import DemandFill


class Twin(DemandFill):
    def start(self):
        self.probation = {p: [k for k in self.initial() if self.pool(k) == p] for p in self.pools()}
        self.protected = {p: [] for p in self.pools()}
        self.share = {p: int(self.capacity(p) * self.parameters["protected"]) for p in self.pools()}

    def see(self, request):
        for key in request.keys:
            pool = self.pool(key)
            for queue in (self.probation[pool], self.protected[pool]):
                if key in queue:
                    queue.remove(key)
                    self.protected[pool].append(key)
                    break
            while sum(map(self.size_of, self.protected[pool])) > self.share[pool]:
                self.probation[pool].append(self.protected[pool].pop(0))

    def victim(self, candidates, request):
        pool = self.pool(candidates[0])
        return next(k for k in self.probation[pool] + self.protected[pool] if k in candidates)

    def evict(self, key):
        for queue in (self.probation, self.protected):
            if key in queue[self.pool(key)]:
                queue[self.pool(key)].remove(key)

    def admit(self, key, request):
        self.probation[self.pool(key)].append(key)
