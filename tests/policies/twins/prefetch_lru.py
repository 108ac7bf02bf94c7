"""What the twins of the prefetching policies share: LRU, then the predicted experts of the next layer."""

from tests.policies.twins import lru


class PrefetchLRU(lru.Twin):
    def predicted(self, request):
        """Keys of the next layer in order."""
        raise NotImplementedError

    def ahead(self, request):
        """Predicted keys of the next layers, layer by layer."""
        return [self.predicted(request)[: self.parameters["width"]]]

    def decide(self, request):
        admitted, evicted, _ = super().decide(request)
        held = (self.residents | set(admitted)) - set(evicted)
        prefetched, spared = [], list(request.keys)
        for ahead in self.ahead(request):
            spared += ahead
            for key in ahead:
                if key in held and key in self.residents and key not in self.pinned:
                    self.order = [k for k in self.order if k != key] + [key]
            for key in ahead:
                if key in self.residents:
                    continue
                if len(admitted) + len(prefetched) >= self.budget:
                    break
                pool = self.pool(key)
                free = self.limit - sum(self.size_of(k) for k in held if self.pool(k) == pool)
                old = [k for k in self.order if self.pool(k) == pool and k not in [*spared, *prefetched]]
                while free < self.size_of(key) and old:
                    victim = old.pop(0)
                    evicted.append(victim)
                    held.remove(victim)
                    self.order.remove(victim)
                    free += self.size_of(victim)
                if free < self.size_of(key):
                    break
                prefetched.append(key)
                held.add(key)
                self.order.append(key)
        return admitted, evicted, prefetched
