"""Twin of w_tinylfu: three lists per pool and a dict of counts."""

from collections import Counter

from tests.policies.twins.one_by_one import OneByOne


class Twin(OneByOne):
    def start(self):
        self.window = self.queues()
        self.probation, self.protected = ({p: [] for p in self.pools()} for _ in range(2))
        self.count, self.uses = Counter(), Counter()
        self.room = {p: self.capacity(p) for p in self.pools()}
        self.window_limit = {p: max(1, int(self.room[p] * self.parameters["window"])) for p in self.pools()}
        self.protected_limit = {
            p: int((self.room[p] - self.window_limit[p]) * self.parameters["protected"]) for p in self.pools()
        }

    def see(self, request):
        for key in request.keys:
            pool = self.pool(key)
            self.count[key] += 1
            self.uses[pool] += 1
            if self.uses[pool] >= self.parameters["sample"] * max(1, self.room[pool] // self.size_of(key)):
                self.uses[pool] //= 2
                for other in self.count:
                    if self.pool(other) == pool:
                        self.count[other] //= 2

    def hit(self, key):
        pool = self.pool(key)
        for queue, target in (
            (self.window, self.window),
            (self.probation, self.protected),
            (self.protected, self.protected),
        ):
            if key in queue[pool]:
                queue[pool].remove(key)
                target[pool].append(key)
                break
        while self.units(self.protected[pool]) > max(0, self.protected_limit[pool]):
            self.probation[pool].append(self.protected[pool].pop(0))

    def take_victim(self, candidates, key):
        pool = self.pool(candidates[0])
        main = [k for k in self.probation[pool] + self.protected[pool] if k in candidates]
        window = [k for k in self.window[pool] if k in candidates]
        is_full = key is not None and self.units(self.window[pool]) + self.size_of(key) > self.window_limit[pool]
        if not main:
            victim = window[0]
        elif not (is_full and window):
            victim = main[0]
        elif self.count[window[0]] > self.count[main[0]]:
            self.window[pool].remove(window[0])
            self.probation[pool].append(window[0])
            victim = main[0]
        else:
            victim = window[0]
        for queue in (self.window, self.probation, self.protected):
            if victim in queue[pool]:
                queue[pool].remove(victim)
        return victim

    def place(self, key):
        pool = self.pool(key)
        self.window[pool].append(key)
        while self.units(self.window[pool]) > self.window_limit[pool]:
            self.probation[pool].append(self.window[pool].pop(0))
