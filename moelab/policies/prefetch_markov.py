"""prefetch_markov: LRU, and copying ahead what most often followed this layer's experts in the next layer.

Reference: order-1 transitions between layers (arXiv 2510.05497 measures them): score of e' = sum over the
request's e of N(e, e') / sum N(e, .). Counts are of (expert of a layer, expert of the next) in the same pass
and begin at 0; the sets count, not the gate weights. Counts are bytes: a row in which one has come to ``largest`` is
halved, rounded down, so that what was long ago counts less, and N of 60 x 384 experts is 9 MB, which caches hold.
The ``width`` highest scores above 0, ties to the lower expert; scores are float32, one reciprocal a row, added
in the order of the request. Time O(M E) a request, memory (L - 1) E^2 bytes. Serving, room and accounting:
``prefetch_lru``. State of its own: row sums of N [L - 1, E], last set of the layer before [E] and its size [1], the
best and the found [E + 1] each, N [L - 1, E, E] as bytes; ``float_state`` holds float32: scores [E], padded to
blocks, the highest of each block, and the found ones. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.prefetch_lru import copy_ahead, new_lists, num_words, serve_lru

BLOCK = 16  # scores of which one comparison knows the highest


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """The lists of ``prefetch_lru``; no transitions."""
    largest = setup.parameters["largest"]
    if not 2 <= largest <= 255:
        raise ValueError(
            f"largest is {largest}, expected 2 to 255: a count is a byte, and 1 would be halved to nothing"
        )
    num_experts = setup.num_experts
    num_rows = (setup.num_layers - 1) * num_experts
    own = num_rows + 3 * num_experts + 3 + (num_rows * num_experts + 7) // 8
    num_floats = num_blocks(num_experts) * (2 * BLOCK + 1) + 1  # a place is written before it is known to count
    return np.zeros((num_floats + 1) // 2, np.float64), new_lists(setup, num_ints=own)


@inlined
def num_blocks(num_experts):
    """Blocks of scores; the last is padded with zeros."""
    return (num_experts + BLOCK - 1) // BLOCK


@compiled
def halve(row):
    """Every count of a row [E] in half, rounded down; return their new sum."""
    total = np.int64(0)
    for follower in range(len(row)):
        row[at(follower)] >>= 1
        total += row[at(follower)]
    return total


@compiled
def learn(view, before, sums, followers):
    """Count the request's experts as followers of the set of the layer before."""
    num_experts, largest = view.resident.shape[1], view.int_parameters[1]
    experts = view.experts
    for i in range(before[num_experts]):
        number = (view.layer - 1) * num_experts + before[at(i)]
        row = followers[number * num_experts : (number + 1) * num_experts]
        sums[at(number)] += len(experts)
        highest = np.int64(0)
        for expert in experts:
            count = np.int64(row[at(expert)]) + 1
            row[at(expert)] = count
            highest = max(highest, count)
        if highest >= largest:
            sums[at(number)] = halve(row)


@compiled
def best_scores(bits, maxima, values, found, best, width):
    """The ``width`` highest scores above 0 into ``best``, highest first, ties to the lower expert; return their number.

    ``bits`` int32 [B * BLOCK] are scores by their bits: floats that are not negative order alike. The ``width``th of
    the highest of each block (``maxima`` [B]) is a threshold that ``width`` scores reach, and few others do.
    ``values`` [B * BLOCK] and ``found`` [E + 1] are buffers, ``best`` has E + 1 places.
    """
    num_blocks = len(maxima)
    for block in range(num_blocks):
        largest = np.int32(0)
        for i in range(BLOCK):
            value = bits[at(block * BLOCK + i)]
            largest = value if value > largest else largest
        maxima[at(block)] = largest
    threshold = np.int32(2**31 - 1)
    for block in range(num_blocks):
        value, num_higher = maxima[at(block)], np.int32(0)
        for other in range(num_blocks):
            num_higher += np.int32(maxima[at(other)] > value)
        threshold = value if (num_higher < width and value < threshold) else threshold
    if num_blocks < width or threshold < 1:
        threshold = np.int32(1)
    # From here on nothing branches on a score: a wrong guess costs the processor more than a score.
    num_chosen, num_found = np.int64(0), np.int64(0)
    for block in range(num_blocks):
        found[at(num_chosen)] = block
        num_chosen += np.int64(maxima[at(block)] >= threshold)
    for i in range(num_chosen):
        best[at(i)] = found[at(i)]
    for i in range(num_chosen):
        begin = best[at(i)] * BLOCK
        for expert in range(begin, begin + BLOCK):
            found[at(num_found)] = expert
            values[at(num_found)] = bits[at(expert)]
            num_found += np.int64(bits[at(expert)] >= threshold)
    for i in range(num_found):
        value, place = values[at(i)], np.int32(0)
        for other in range(i):
            place += np.int32(values[at(other)] >= value)
        for other in range(i + 1, num_found):
            place += np.int32(values[at(other)] > value)
        best[at(place)] = found[at(i)]
    return min(num_found, width)


@compiled
def decide(view):
    """Learn from the layer before, serve, copy what is likely next."""
    if len(view.free_slots) == 0:
        return
    num_layers, num_experts = view.resident.shape
    sums = view.int_state[num_words(view.resident.size, view.free_slots.shape[1]) :]
    num_rows = (num_layers - 1) * num_experts
    before, best = sums[num_rows:], sums[num_rows + num_experts + 1 :]
    followers = sums[num_rows + 3 * num_experts + 3 :].view(np.uint8)
    experts = view.experts
    if view.layer > 0:
        learn(view, before, sums, followers)
    for i in range(len(experts)):
        before[at(i)] = experts[at(i)]
    before[num_experts] = len(experts)
    serve_lru(view)
    width = min(view.int_parameters[0], num_experts)
    if view.layer + 1 == num_layers or width < 1:
        return
    score = view.float_state.view(np.float32)
    for follower in range(num_experts):
        score[at(follower)] = np.float32(0)
    for expert in experts:
        number = view.layer * num_experts + expert
        total = sums[at(number)]
        if total > 0:
            share = np.float32(1) / np.float32(total)
            row = followers[number * num_experts : (number + 1) * num_experts]
            for follower in range(num_experts):
                score[at(follower)] += np.float32(row[at(follower)]) * share
    bits, blocks = score.view(np.int32), num_blocks(num_experts)
    maxima, values = bits[blocks * BLOCK :][:blocks], bits[blocks * (BLOCK + 1) :]
    num_best = best_scores(bits[: blocks * BLOCK], maxima, values, best[num_experts + 1 :], best, width)
    copy_ahead(view, view.layer + 1, best, num_best)


POLICY = Policy(
    name="prefetch_markov",
    decide=decide,
    reference="arXiv 2510.05497 (transitions between layers)",
    parameters={"width": 8, "largest": 255},
    new_state=new_state,
    prefetches=True,
)
