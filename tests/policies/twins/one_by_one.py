"""What the twins share that serve one miss after the other: room is made, then the miss is placed."""

from tests.policies.twins.cache import NaiveCache


class OneByOne(NaiveCache):
    def see(self, request):
        """What a request changes before its hits move."""

    def decide(self, request):
        self.see(request)
        for key in request.keys:
            if key in self.residents and key not in self.pinned:
                self.hit(key)
        misses = [k for k in request.keys if k not in self.residents]
        free, admitted, evicted = self.free(request.layer), [], []

        def go(key):
            """One eviction for a miss (None: to get back to the capacity); False if nobody may go."""
            nonlocal free
            candidates = [k for k in self.evictable(request.layer, request.keys) if k not in evicted]
            victim = self.take_victim(candidates, key) if candidates else None
            if victim is None:
                return False
            evicted.append(victim)
            free += self.size_of(victim)
            return True

        for key in misses[: self.budget]:
            self.before(key)
            while free < self.size_of(key) and go(key):
                pass
            if free < self.size_of(key) and not self.overflow:
                break
            self.place(key)
            admitted.append(key)
            free -= self.size_of(key)
        while self.overflow and free < 0 and go(None):
            pass
        return admitted, evicted, []

    def queues(self):
        """{pool: [initial residents]}, oldest first."""
        return {p: [k for k in self.initial() if self.pool(k) == p] for p in self.pools()}

    def units(self, queue):
        return sum(map(self.size_of, queue))

    def hit(self, key):
        raise NotImplementedError

    def before(self, key):
        """A miss is going to be served."""

    def take_victim(self, candidates, key):
        raise NotImplementedError

    def place(self, key):
        raise NotImplementedError
