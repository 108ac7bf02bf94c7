"""Twin of second_touch: only misses that were used at most a window of passes ago may come in."""

from tests.policies.twins.cache import NaiveCache


class Twin(NaiveCache):
    def start(self):
        self.order, self.passed = self.initial(), {}

    def decide(self, request):
        now = request.clock // self.num_layers
        misses = [k for k in request.keys if k not in self.residents]
        recent = [k for k in misses if k in self.passed and now - self.passed[k] <= self.parameters["window"]]
        wanted, free, evicted = recent[: self.budget], self.free(request.layer), []
        while free < sum(map(self.size_of, wanted)):
            listed = [k for k in self.order if k in self.evictable(request.layer, request.keys) and k not in evicted]
            if not listed:
                break
            evicted.append(listed[0])
            free += self.size_of(listed[0])
        while not self.overflow and free < sum(map(self.size_of, wanted)):
            wanted.pop()
        self.order = [k for k in self.order if k not in evicted]
        for key in request.keys:
            self.passed[key] = now
            if (key in self.residents or key in wanted) and key not in self.pinned:
                self.order = [k for k in self.order if k != key] + [key]
        return wanted, evicted, []
