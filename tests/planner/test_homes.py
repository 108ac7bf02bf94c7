"""Homes of experts on fast tiers where layers differ in bytes: every expert has one, no node holds too much."""

from itertools import product

import numpy as np

from moelab.planner.homes import rehoused
from moelab.planner.node_problem import node_problem
from tests.seeded_traces import seeded_trace

SIZES = (100, 170, 300, 330)


def test_homes_fit_nearly_always_where_any_do():
    """Random places on two tight nodes and a fast tier, against every way to share out the homes."""
    trace = seeded_trace(1, num_layers=4, num_experts=8, num_requests=4, expert_bytes=SIZES)
    problem = node_problem(trace, nodes=2, fast_slots=[16], held_out=0)
    num_fitting = num_found = 0
    for seed in range(150):
        masks = 1 << np.random.default_rng(seed).integers(0, 3, (4, 8))
        room = problem.room(masks)
        if (room < 0).any():
            continue
        homes = rehoused(problem, masks)
        assert ((homes > 0) == (masks == 4)).all()
        assert (np.bitwise_count(homes) <= 1).all()
        found = bool((problem.used(masks, homes) <= problem.budget).all())
        assert not found or any_fits(room, (masks == 4).sum(1))
        num_fitting += any_fits(room, (masks == 4).sum(1))
        num_found += found
    assert num_found >= 0.9 * num_fitting > 50  # in the order of layers, to the node with most room: one in five


def any_fits(room, counts):
    """Does some number of homes of each layer on node 0 leave both nodes within their budgets?"""
    total = int(np.dot(counts, SIZES))
    on_first = (np.dot(some, SIZES) for some in product(*(range(count + 1) for count in counts)))
    return any(held <= room[0] and total - held <= room[1] for held in on_first)
