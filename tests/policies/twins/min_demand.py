"""Twin of min_demand: futures of residents in a dict."""

from tests.policies.twins.cache import NEVER, NaiveCache


class Twin(NaiveCache):
    def start(self):
        self.returns = {k: self.first_use.get(k, (NEVER,)) for k in self.residents}

    def decide(self, request):
        misses = sorted((k for k in request.keys if k not in self.residents), key=lambda k: request.next_use[k])
        victims = sorted(self.evictable(request.layer, request.keys), key=lambda k: (self.returns[k], k))
        free = self.free(request.layer)
        admitted, evicted = [], []
        for key in misses[: self.budget]:
            while free < self.size_of(key) and victims:
                evicted.append(victims.pop())
                free += self.size_of(evicted[-1])
            if free < self.size_of(key):
                break
            admitted.append(key)
            free -= self.size_of(key)
        self.returns.update((key, request.next_use[key]) for key in request.keys)
        return admitted, evicted, []
