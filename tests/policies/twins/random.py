"""Twin of random: the same generator, a list in which the last takes the place of the one that goes."""

from tests.policies.twins.cache import DemandFill


class Twin(DemandFill):
    def start(self):
        self.row = {p: [k for k in self.initial() if self.pool(k) == p] for p in self.pools()}
        self.x = self.parameters.get("seed", 0) % (2**31 - 2) + 1

    def victim(self, candidates, request):
        row = self.row[self.pool(candidates[0])]
        while True:
            self.x = self.x * 48271 % (2**31 - 1)
            drawn = row[self.x % len(row)]
            if drawn in candidates:
                return drawn

    def evict(self, key):
        row = self.row[self.pool(key)]
        place = row.index(key)
        row[place] = row[-1]
        row.pop()

    def admit(self, key, request):
        self.row[self.pool(key)].append(key)
