"""Twin of min_bypass: futures of residents in a dict."""

from tests.policies.twins.cache import NEVER, NaiveCache


class Twin(NaiveCache):
    """``returns``: next use of every resident; ``first_use`` for the initial ones."""

    def start(self):
        self.returns = {k: self.first_use.get(k, (NEVER,)) for k in self.residents}

    def decide(self, request):
        next_use = request.next_use
        misses = [k for k in request.keys if k not in self.residents and next_use[k] != (NEVER,)]
        misses.sort(key=lambda k: next_use[k])  # stable: appearance breaks ties
        victims = sorted(self.evictable(request.layer, request.keys), key=lambda k: (self.returns[k], k))
        free = self.free(request.layer)
        admitted, evicted = [], []
        for key in misses[: self.budget]:
            while free < self.size_of(key) and victims and self.returns[victims[-1]] > next_use[key]:
                evicted.append(victims.pop())
                free += self.size_of(evicted[-1])
            if free < self.size_of(key):
                break
            admitted.append(key)
            free -= self.size_of(key)
        for key in request.keys:
            self.returns[key] = next_use[key]
        return admitted, evicted, []
