"""quick_placement: a placement in milliseconds, for a preview while a planner still searches.  Floor 4.

On the fast tier the most used experts (as ``frequency`` does, the same ones), or the first ids for ``uniform``; over
nodes experts dealt to and fro in order of load, and replicas of the hottest as far as the extra memory goes. A preview
that rests on it says so. Does not search.
"""

from __future__ import annotations

import numpy as np

from moelab.exploration.draft import Draft
from moelab.exploration.settings import Settings
from moelab.planner.balanced_packing import whole_shares
from moelab.planner.step_maximum import CUT

EXACT = frozenset({"frequency", "uniform", "empty", "row_split", "mirror"})
"""Planners whose placement this is, not a stand-in for it."""


def quick_placement(settings: Settings, loads: np.ndarray, num_units: int) -> Draft:
    """Draft from ``loads`` [L, E] of the planning part; ``num_units``: of rows, of an expert."""
    num_experts = loads.shape[1]
    order = np.argsort(-loads, axis=1, kind="stable")
    place = np.argsort(order, axis=1)
    slots = min(settings.slots_per_layer, num_experts)
    if settings.planner == "empty":
        fast = np.zeros(loads.shape, bool)
    elif settings.planner == "uniform":
        fast = np.broadcast_to(np.arange(num_experts) < slots, loads.shape).copy()
    else:
        fast = place < slots
    return Draft(
        masks=_over_nodes(settings, place, fast), fast=fast, pinned=np.zeros(loads.shape, bool),
        piece_units=whole_shares(num_units, np.ones(settings.nodes)),
    )  # fmt: skip


def filled(draft: Draft, loads: np.ndarray, slots: np.ndarray) -> Draft:
    """``draft`` with the hottest experts of each layer on the fast tier, ``slots`` int [L] of them."""
    place = np.argsort(np.argsort(-loads, axis=1, kind="stable"), axis=1)
    return draft.changed(fast=place < slots[:, None])


def _over_nodes(settings: Settings, place: np.ndarray, fast: np.ndarray) -> np.ndarray:
    """int64 [L, E]: node bits; ``place`` of each expert in its layer by load, those of the fast tier dealt last."""
    num_nodes, (num_layers, num_experts) = settings.nodes, place.shape
    everywhere = (1 << num_nodes) - 1
    if num_nodes == 1 or settings.planner == "mirror":
        return np.full(place.shape, everywhere)
    if settings.planner == "row_split":
        return np.full(place.shape, CUT)
    turn = np.where(fast, place + num_experts, place)
    turn = np.argsort(np.argsort(turn, axis=1), axis=1)
    lap, within = turn // num_nodes, turn % num_nodes
    node = np.where(lap % 2 == 0, within, num_nodes - 1 - within)  # to and fro: the fullest gets the next least
    node = (node + np.arange(num_layers)[:, None]) % num_nodes
    spare = int(settings.extra_memory * num_experts / (num_nodes - 1) + 1e-9)
    return np.where((turn < spare) & ~fast, everywhere, 1 << node)
