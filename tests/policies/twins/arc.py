"""Twin of arc: the four lists of figure 4 in the paper."""

from tests.policies.twins.one_by_one import OneByOne


class Twin(OneByOne):
    def start(self):
        self.t1 = self.queues()
        self.t2, self.b1, self.b2 = ({p: [] for p in self.pools()} for _ in range(3))
        self.p = dict.fromkeys(self.pools(), 0.0)
        self.room = {p: self.capacity(p) for p in self.pools()}

    def remove(self, key):
        for queues in (self.t1, self.t2, self.b1, self.b2):
            if key in queues[self.pool(key)]:
                queues[self.pool(key)].remove(key)

    def hit(self, key):
        self.remove(key)
        self.t2[self.pool(key)].append(key)

    def before(self, key):
        pool, size = self.pool(key), self.size_of(key)
        t1, t2, b1, b2 = (self.units(q[pool]) for q in (self.t1, self.t2, self.b1, self.b2))
        self.is_direct, self.in_b2 = False, key in self.b2[pool]
        if key in self.b1[pool]:
            self.p[pool] = min(float(self.room[pool]), self.p[pool] + max(1, b2 / b1) * size)
        elif self.in_b2:
            self.p[pool] = max(0.0, self.p[pool] - max(1, b1 / b2) * size)
        elif t1 + b1 + size > self.room[pool]:
            if b1:
                self.b1[pool].pop(0)
            else:
                self.is_direct = True
        elif t1 + t2 + b1 + b2 + size > 2 * self.room[pool] and b2:
            self.b2[pool].pop(0)

    def take_victim(self, candidates, key):
        pool = self.pool(candidates[0])
        t1, t2 = ([k for k in q[pool] if k in candidates] for q in (self.t1, self.t2))
        if key is not None and self.is_direct and t1:
            self.t1[pool].remove(t1[0])
            return t1[0]
        size = self.units(self.t1[pool])
        from_t1 = size > 0 and (size > self.p[pool] or (key is not None and self.in_b2 and size == self.p[pool]))
        if not (t1 if from_t1 else t2):
            from_t1 = not from_t1
        victim = (t1 if from_t1 else t2)[0]
        self.remove(victim)
        (self.b1 if from_t1 else self.b2)[pool].append(victim)
        return victim

    def place(self, key):
        pool = self.pool(key)
        was_ghost = key in self.b1[pool] + self.b2[pool]
        self.remove(key)
        (self.t2 if was_ghost else self.t1)[pool].append(key)
