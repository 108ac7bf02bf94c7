"""Twin of s3_fifo: three queues per pool."""

from collections import Counter

from tests.policies.twins.one_by_one import OneByOne


class Twin(OneByOne):
    def start(self):
        self.small = self.queues()
        self.main, self.ghosts = ({p: [] for p in self.pools()} for _ in range(2))
        self.uses, self.evicts = Counter(), set()
        self.small_limit = {p: int(self.capacity(p) * self.parameters["small"]) for p in self.pools()}
        self.main_limit = {p: self.capacity(p) - self.small_limit[p] for p in self.pools()}
        self.ghost_limit = {p: int(self.capacity(p) * self.parameters["ghosts"]) for p in self.pools()}

    def hit(self, key):
        self.uses[key] = min(3, self.uses[key] + 1)

    def before(self, key):
        queue = self.ghosts[self.pool(key)]
        self.was_ghost = key in queue
        if self.was_ghost:
            queue.remove(key)

    def take_victim(self, candidates, key):
        pool = self.pool(candidates[0])
        self.evicts.add(pool)
        in_small = False
        while True:
            small, main = ([k for k in q[pool] if k in candidates] for q in (self.small, self.main))
            main_over = self.units(self.main[pool]) > self.main_limit[pool]
            in_small = bool(small) and (in_small or not (main and main_over))
            if in_small:
                key = small[0]
                self.small[pool].remove(key)
                if self.uses[key] >= self.parameters["promote_after"]:
                    self.uses[key] = 0
                    self.main[pool].append(key)
                    continue
                if self.size_of(key) <= self.ghost_limit[pool]:
                    self.ghosts[pool].append(key)
                    while self.units(self.ghosts[pool]) > self.ghost_limit[pool]:
                        self.ghosts[pool].pop(0)
                return key
            key = main[0]
            self.main[pool].remove(key)
            if self.uses[key] == 0:
                return key
            self.uses[key] -= 1
            self.main[pool].append(key)

    def place(self, key):
        pool = self.pool(key)
        self.uses[key] = 0
        if self.was_ghost or (pool not in self.evicts and self.units(self.small[pool]) >= self.small_limit[pool]):
            self.main[pool].append(key)
        else:
            self.small[pool].append(key)
