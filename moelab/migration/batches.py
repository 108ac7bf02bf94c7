"""Batches: the experts of one layer in groups that move one after the other, so that few are there twice.  Floor 4.

Each group's new copies are at most so many bytes; experts that shrink go first, so that what a layer holds on the way
is never more than before or after plus one group. Knows copies and bytes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np

from moelab.domain.plan_copies import Copies
from moelab.kernels.node_placement import Copy


@dataclass(frozen=True, eq=False)
class Batch:
    """Where a layer stands after a group, and the bytes that the group adds and removes on each node, int64 [N]."""

    copies: Copies
    experts: frozenset[int]
    added: np.ndarray
    removed: np.ndarray


def batches(
    held: Mapping[Copy, int], wanted: Mapping[Copy, int], num_nodes: int, most_bytes: int, layer: int
) -> list[Batch]:
    """Of a layer that has ``held`` and shall have ``wanted`` (bytes of each copy); none where they are the same.

    Raises ``ValueError`` where one expert's new copies are more than ``most_bytes``.
    """
    of_expert: dict[int, tuple[list[Copy], list[Copy]]] = {}
    for side, copies in enumerate((wanted.keys() - held.keys(), held.keys() - wanted.keys())):
        for copy in copies:
            of_expert.setdefault(copy[0], ([], []))[side].append(copy)
    grown = {
        expert: sum(wanted[copy] for copy in new) - sum(held[copy] for copy in old)
        for expert, (new, old) in of_expert.items()
    }
    groups: list[list[int]] = []
    filled = 0
    for expert in sorted(of_expert, key=lambda each: (grown[each], each)):
        size = sum(wanted[copy] for copy in of_expert[expert][0])
        if size > most_bytes:
            raise ValueError(
                f"layer {layer}: the new copies of expert {expert} are {size / 1e9:.3f} GB, expected at most the "
                f"{most_bytes / 1e9:.3f} GB that may be there twice: allow more"
            )
        if not groups or filled + size > most_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(expert)
        filled += size
    now: Set[Copy] = set(held)
    found = []
    for group in groups:
        new, old = ([copy for expert in group for copy in of_expert[expert][side]] for side in (0, 1))
        now = (now - set(old)) | set(new)
        added, removed = np.zeros((2, num_nodes), np.int64)
        np.add.at(added, [copy[3] for copy in new], [wanted[copy] for copy in new])
        np.add.at(removed, [copy[3] for copy in old], [held[copy] for copy in old])
        rows = np.array(sorted(now), np.int64).reshape(-1, 4)
        found.append(Batch((rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]), frozenset(group), added, removed))
    return found
