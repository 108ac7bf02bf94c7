"""Interpolated Witten-Bell n-gram models over token ids: the baseline that nano has to beat.

Knows: exact counts of all n-grams up to the order (sorted int64 keys, nothing pruned or hashed) and
the interpolation p_n(w | h) = (c(hw) + t(h) p_{n-1}(w | h')) / (c(h) + t(h)), with t(h) the number
of distinct followers of h (Witten and Bell 1991; Chen and Goodman 1998, section 2.4); p_0 = 1 / V.
Does not know: text, domains or windows.
"""

import numpy as np


def sum_runs(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, starts) if len(starts) else values[:0]


class NgramModel:
    """`streams`: list of uint16 arrays (n-grams do not cross streams); vocab_size <= 4096 for order 5."""

    def __init__(self, streams: list[np.ndarray], order: int, vocab_size: int):
        self.bits = int(vocab_size - 1).bit_length()
        if self.bits * order > 63:
            raise ValueError(
                f"order {order} needs {self.bits * order} bits per key, got room for 63: lower the order or the vocabulary"
            )
        self.order, self.vocab_size, self.tables = order, vocab_size, []
        for n in range(1, order + 1):
            keys = np.concatenate([self._keys(stream.astype(np.int64), n) for stream in streams])
            keys.sort()
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            counts = np.diff(np.append(starts, len(keys)))
            keys = keys[starts]
            contexts = keys >> self.bits
            starts = np.flatnonzero(np.concatenate([[True], contexts[1:] != contexts[:-1]]))
            self.tables.append(
                (keys, counts, contexts[starts], sum_runs(counts, starts), np.diff(np.append(starts, len(keys))))
            )

    def _keys(self, tokens: np.ndarray, n: int) -> np.ndarray:
        """int64 [len - n + 1]: the n-gram starting at each position, first token in the highest bits."""
        length = max(0, len(tokens) - n + 1)
        keys = np.zeros(length, np.int64)
        for i in range(n):
            keys = (keys << self.bits) | tokens[i : i + length]
        return keys

    def nats(self, window: np.ndarray) -> dict[int, np.ndarray]:
        """window int [T + 1] -> {order: float64 [T]}: cost of tokens 1..T, contexts only from inside the window."""
        window = window.astype(np.int64)
        num_targets = len(window) - 1
        p = np.full(num_targets, 1.0 / self.vocab_size)
        costs = {}
        for n, (keys, counts, contexts, totals, followers) in enumerate(self.tables, 1):
            first = max(0, n - 2)  # targets before it have a shorter history: keep the lower order
            query = self._keys(window, n)[1 if n == 1 else 0 :]
            i = np.minimum(np.searchsorted(keys, query), len(keys) - 1)
            count = np.where(keys[i] == query, counts[i], 0)
            j = np.minimum(np.searchsorted(contexts, query >> self.bits), len(contexts) - 1)
            seen = contexts[j] == query >> self.bits
            lower = p[first:]
            p[first:] = np.where(seen, (count + followers[j] * lower) / (totals[j] + followers[j]), lower)
            costs[n] = -np.log(p)
        return costs


if __name__ == "__main__":  # hand check: probabilities over the vocabulary sum to one for any history
    rng = np.random.default_rng(0)
    model = NgramModel([rng.integers(0, 16, 400).astype(np.uint16)], 4, 16)
    for history in rng.integers(0, 16, (20, 5)):
        for order in (1, 2, 3, 4):
            total = sum(np.exp(-model.nats(np.append(history, w))[order][-1]) for w in range(16))
            assert abs(total - 1) < 1e-9, (history, order, total)
    print("probabilities sum to one")
