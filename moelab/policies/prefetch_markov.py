"""prefetch_markov: LRU, and copying ahead what most often followed this layer's experts in the next layer.

Reference: order-1 transitions between layers (arXiv 2510.05497 measures them): score of e' = mean over the
request's e of N(e, e') / how often e was there, the probability that e' follows. Counts are of (expert of a layer,
expert of the next) in the same pass and begin at 0; the sets count, not the gate weights. Counts are bytes: a row in
which one has come to ``largest`` is halved, rounded down, so that what was long ago counts less, and N of 60 x 384
experts is 9 MB, which caches hold. The ``width`` highest scores above 0, ties to the lower expert. Scores are whole
numbers of 16 bits, ``FULL`` where every expert of the request was always followed by e': a row's share counts with
eight significant bits and is rounded down, so that in a set of hundreds rows that say less than one in two hundred say
nothing. Time O(M E) a request, memory (L - 1) E^2 bytes. Serving, room and accounting: ``prefetch_lru``. State of its
own, all whole numbers: how often each expert was there [L - 1, E], last set of the layer before [E] and its size [1],
the best [E], N [L - 1, E, E padded to lanes] as bytes; buffers: the scores and the highest of each 32 of them, both
padded to lanes, 16 bits each, and one float32. Floor 1.
"""

from __future__ import annotations

import numpy as np

from moelab.policies.compiled import at, compiled, inlined
from moelab.policies.policy import Policy, PolicySetup
from moelab.policies.prefetch_lru import copy_ahead, new_lists, num_words, serve_lru
from moelab.policies.short_lanes import LANES, add_products, ask_for_line, largest, place_of, put

FULL = 65535  # score of what always followed


def new_state(setup: PolicySetup) -> tuple[np.ndarray, np.ndarray]:
    """The lists of ``prefetch_lru``; no transitions."""
    most = setup.parameters["largest"]
    if not 2 <= most <= 255:
        raise ValueError(f"largest is {most}, expected 2 to 255: a count is a byte, and 1 would be halved to nothing")
    num_experts = setup.num_experts
    num_rows = (setup.num_layers - 1) * num_experts
    own = num_rows + 2 * num_experts + 1 + num_rows * padded(num_experts) // 8 + buffer_words(num_experts)
    return np.zeros(0), new_lists(setup, num_ints=own)


@inlined
def padded(number):
    """Up to a multiple of the lanes."""
    return (number + LANES - 1) // LANES * LANES


@inlined
def buffer_words(num_experts):
    """int64 words of scores, of the highest of each 32 and of one float32."""
    return (padded(num_experts) + padded(padded(num_experts) // LANES)) // 4 + 1


@compiled
def halve(row):
    """Every count of a row [E] in half, rounded down."""
    for follower in range(len(row)):
        row[at(follower)] >>= 1


@compiled
def learn(view, before, times, followers):
    """Count the request's experts as followers of the set of the layer before."""
    num_experts, most = view.resident.shape[1], view.int_parameters[1]
    experts = view.experts
    for i in range(before[num_experts]):
        number = (view.layer - 1) * num_experts + before[at(i)]
        row = followers[number * padded(num_experts) :][:num_experts]
        times[at(number)] += 1
        highest = np.int64(0)
        for expert in experts:
            count = np.int64(row[at(expert)]) + 1
            row[at(expert)] = count
            highest = max(highest, count)
        if highest >= most:
            halve(row)
            times[at(number)] >>= 1  # no count is above it, and none will be


@compiled
def add_shares(experts, first_row, times, followers, num_experts, scores, number):
    """Scores of what followed ``experts``, whose rows begin at ``first_row``; ``number`` float32 [1] is a buffer.

    A row's share is count x FULL / (experts x times of the row), the quotient cut to eight bits and a power of two.
    """
    size, bits = padded(num_experts), number.view(np.int32)
    for i in range(size):
        scores[at(i)] = 0
    for expert in experts:
        total = times[at(first_row + expert)]
        if total == 0:
            continue
        number[0] = np.float32(FULL // len(experts)) / np.float32(total)
        factor = np.int64(128 | (bits[0] >> 16 & 127))
        left = np.int64((bits[0] >> 23) - 127 - 7)
        right = max(-left, np.int64(0))
        left = max(left, np.int64(0))
        if right > 15:  # nothing of 16 bits is left, and such a shift is not defined
            continue
        row = followers.ctypes.data + (first_row + expert) * size
        for begin in range(0, size, LANES):
            add_products(scores.ctypes.data + 2 * begin, row + begin, factor, left, right)


@inlined
def highest_of_all(highest):
    """The highest of the blocks, and where its vector begins: the first that has it."""
    value, begin = largest(highest.ctypes.data), 0
    for first in range(LANES, len(highest), LANES):
        here = largest(highest.ctypes.data + 2 * first)
        value, begin = (here, first) if here > value else (value, begin)
    return value, begin


@compiled
def best_scores(scores, highest, best, width):
    """The ``width`` highest scores above 0 into ``best``, highest first, ties to the lower expert; return their number.

    ``scores`` uint16 [E, padded to lanes], which are used up; ``highest`` uint16, padded too, a buffer.
    """
    num_blocks = len(scores) // LANES
    for block in range(len(highest)):
        highest[at(block)] = 0
    for block in range(num_blocks):
        highest[at(block)] = largest(scores.ctypes.data + 2 * LANES * block)
    num_best = 0
    value, begin = highest_of_all(highest)
    while num_best < width and value > 0:
        block = place_of(highest.ctypes.data + 2 * begin, value)
        lanes = scores.ctypes.data + 2 * LANES * (begin + block)
        place = place_of(lanes, value)
        best[at(num_best)] = (begin + block) * LANES + place
        num_best += 1
        value = put(highest.ctypes.data + 2 * begin, block, put(lanes, place, 0))
        if len(highest) > LANES:
            value, begin = highest_of_all(highest)
    return num_best


@inlined
def ask_for_rows(experts, first_row, followers, size):
    """The rows lie in the last cache at best; they arrive while the request is served."""
    for expert in experts:
        for byte in range(0, size, 64):
            ask_for_line(followers.ctypes.data + (first_row + expert) * size + byte)


@compiled
def decide(view):
    """Learn from the layer before, serve, copy what is likely next."""
    if len(view.free_slots) == 0:
        return
    num_layers, num_experts = view.resident.shape
    size, experts = padded(num_experts), view.experts
    times = view.int_state[num_words(view.resident.size, view.free_slots.shape[1]) :]
    num_rows = (num_layers - 1) * num_experts
    before, best = times[num_rows:], times[num_rows + num_experts + 1 :]
    buffers = times[num_rows + 2 * num_experts + 1 + num_rows * size // 8 :][: buffer_words(num_experts)]
    followers = times[num_rows + 2 * num_experts + 1 :].view(np.uint8)
    width, first_row = min(view.int_parameters[0], num_experts), view.layer * num_experts
    predicts = view.layer + 1 < num_layers and width > 0
    if predicts:
        ask_for_rows(experts, first_row, followers, size)
    if view.layer > 0:
        learn(view, before, times, followers)
    for i in range(len(experts)):
        before[at(i)] = experts[at(i)]
    before[num_experts] = len(experts)
    serve_lru(view)
    if predicts:
        shorts = buffers.view(np.uint16)
        scores, highest = shorts[:size], shorts[size : size + padded(size // LANES)]
        number = buffers.view(np.float32)[2 * (len(buffers) - 1) :]
        add_shares(experts, first_row, times, followers, num_experts, scores, number)
        copy_ahead(view, view.layer + 1, best, best_scores(scores, highest, best, width))


POLICY = Policy(
    name="prefetch_markov",
    decide=decide,
    reference="arXiv 2510.05497 (transitions between layers)",
    parameters={"width": 8, "largest": 255},
    new_state=new_state,
    prefetches=True,
)
