"""edit: what hands do to chosen experts: pin, move, replicate, split, and back.  Floor 4.

Pure: a draft in, another out. The fast tier keeps its size: what is moved there takes the places of the coldest that
are not pinned, in its layer. Does not know time; ``figures`` says what an edit costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moelab.exploration.draft import FAST, Draft
from moelab.planner.step_maximum import CUT

ACTIONS = ("pin", "unpin", "move", "replicate", "split")


@dataclass(frozen=True, eq=False)
class Edit:
    """``action`` of ``ACTIONS`` on the experts of ``chosen`` bool [L, E]; ``tier`` (node0.., fast0) of ``move``."""

    action: str
    chosen: np.ndarray
    tier: str = ""

    def __str__(self) -> str:
        where = f" to {self.tier}" if self.tier else ""
        num = int(self.chosen.sum())
        return f"{self.action} {num} expert{'s' * (num != 1)}{where}"


def edited(draft: Draft, edit: Edit, loads: np.ndarray, slots: np.ndarray) -> Draft:
    """``draft`` after ``edit``; ``loads`` [L, E] say who is coldest, ``slots`` int [L] what fast0 holds in each layer.

    Raises ``ValueError`` that says what to do where the edit is impossible.
    """
    chosen = edit.chosen
    if chosen.shape != draft.fast.shape:
        raise ValueError(f"chosen is {chosen.shape}, expected layers x experts {draft.fast.shape}")
    if edit.action not in ACTIONS:
        raise ValueError(f"action is {edit.action!r}, expected one of {', '.join(ACTIONS)}")
    if not chosen.any():
        raise ValueError("no expert is chosen: click on the map, draw a box, or write a query such as `load > 2`")
    if edit.action == "pin":
        moved = _to_fast(draft, chosen, loads, slots)
        return moved.changed(pinned=moved.pinned | chosen)
    if edit.action == "unpin":
        return draft.changed(pinned=draft.pinned & ~chosen)
    if edit.action == "move":
        return _moved(draft, edit, loads, slots)
    if edit.action in ("replicate", "split"):  # all that is left
        if draft.num_nodes < 2:
            raise ValueError(f"one node, so there is nothing to {edit.action}: set nodes to 2 or more")
        if edit.action == "split" and (draft.piece_units < 1).any():
            raise ValueError(
                "these experts cannot be split: their intermediate size is not known, or has fewer units of 32 rows "
                "than there are nodes; give model=, or replicate"
            )
        everywhere = CUT if edit.action == "split" else (1 << draft.num_nodes) - 1
        return _off_fast(draft, chosen).changed(masks=np.where(chosen, everywhere, draft.masks))
    raise AssertionError(edit.action)


def _moved(draft: Draft, edit: Edit, loads: np.ndarray, slots: np.ndarray) -> Draft:
    if edit.tier == FAST:
        return _to_fast(draft, edit.chosen, loads, slots)
    nodes = [f"node{n}" for n in range(draft.num_nodes)]
    if edit.tier not in nodes:
        raise ValueError(f"tier is {edit.tier!r}, expected {FAST} or one of {', '.join(nodes)}")
    return _off_fast(draft, edit.chosen).changed(masks=np.where(edit.chosen, 1 << nodes.index(edit.tier), draft.masks))


def _off_fast(draft: Draft, chosen: np.ndarray) -> Draft:
    return draft.changed(fast=draft.fast & ~chosen, pinned=draft.pinned & ~chosen)


def _to_fast(draft: Draft, chosen: np.ndarray, loads: np.ndarray, slots: np.ndarray) -> Draft:
    """The chosen, then as many of those that were there as still fit: pinned ones first, then by load."""
    kept = (draft.pinned | chosen).sum(1)
    over = np.flatnonzero(kept > slots)
    if len(over):
        layer = int(over[0])
        raise ValueError(
            f"{FAST} has {slots[layer]} slots in layer {layer}, {kept[layer]} would be pinned or moved there: "
            "choose fewer experts or give it more slots"
        )
    rank = np.where(chosen | draft.pinned, np.inf, np.where(draft.fast, loads, -1.0))
    place = np.argsort(np.argsort(-rank, axis=1, kind="stable"), axis=1)
    return draft.changed(fast=(chosen | draft.fast) & (place < slots[:, None]))
