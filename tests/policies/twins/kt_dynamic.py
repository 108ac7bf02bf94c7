"""Twin of kt_dynamic: the set that each layer should hold, once a prefill has said so."""

from tests.policies.twins.cache import NaiveCache


class Twin(NaiveCache):
    def start(self):
        self.wanted = {}

    def decide(self, request):
        layer, admitted, evicted, prefetched = request.layer, [], [], []
        if layer in self.wanted:
            missing = sorted(self.wanted[layer] - self.residents)
            held = {k for k in self.residents if k[0] == layer} - self.pinned - self.wanted[layer] - set(request.keys)
            moves = list(zip(missing, sorted(held), strict=False))[: self.budget]
            for key, victim in moves:
                evicted.append(victim)
                (admitted if key in request.keys else prefetched).append(key)
            if len(moves) == len(missing):
                del self.wanted[layer]
        if request.flags & 1 and sum(request.counts.values()) >= self.parameters["min_routings"]:
            num_places = len([k for k in self.residents if k[0] == layer and k not in self.pinned])
            free = [k for k in request.keys if k not in self.pinned]
            self.wanted[layer] = set(sorted(free, key=lambda k: (-request.counts[k], k))[:num_places])
        return admitted, evicted, prefetched
