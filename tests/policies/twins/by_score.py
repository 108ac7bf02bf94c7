"""What the twins of the score policies share: misses by falling score against the lowest residents."""

from tests.policies.twins.cache import NaiveCache


class ByScore(NaiveCache):
    """``score`` of a key now; ``last``: number of the last use, which breaks ties among victims."""

    def start(self):
        self.last = {key: number for number, key in enumerate(self.initial())}
        self.number = len(self.last)
        self.begin()

    def begin(self):
        """The policy's own metadata."""

    def see(self, request):
        raise NotImplementedError

    def score(self, key, request):
        raise NotImplementedError

    def lowest(self, request, gone):
        candidates = [k for k in self.evictable(request.layer, request.keys) if k not in gone]
        return min(candidates, key=lambda k: (self.score(k, request), self.last[k]), default=None)

    def decide(self, request):
        self.see(request)
        for key in request.keys:
            self.last[key] = self.number
            self.number += 1
        threshold, limit = self.parameters["hysteresis"], self.parameters["max_uploads"]
        misses = [k for k in request.keys if k not in self.residents]
        misses.sort(key=lambda k: -self.score(k, request))  # stable: appearance breaks ties
        free, admitted, evicted = self.free(request.layer), [], []
        for key in misses[: min(self.budget, limit)]:
            would_go, room, is_worth_it = [], free, True
            while room < self.size_of(key):
                victim = self.lowest(request, evicted + would_go)
                if victim is None:
                    is_worth_it = self.overflow
                    break
                if threshold > -1 and not self.score(key, request) > (1 + threshold) * self.score(victim, request):
                    is_worth_it = False
                    break
                would_go.append(victim)
                room += self.size_of(victim)
            if not is_worth_it:
                break
            evicted += would_go
            admitted.append(key)
            free = room - self.size_of(key)
        while self.overflow and free < 0 and (victim := self.lowest(request, evicted)) is not None:
            evicted.append(victim)
            free += self.size_of(victim)
        self.after(request, admitted, evicted)
        return admitted, evicted, []

    def after(self, request, admitted, evicted):
        """What the decision changes."""
