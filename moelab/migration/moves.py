"""Moves: the experts of layers go to other homes, layer after layer, with a way back until the end.  Floor 4.

Of each layer the new copies are made, filled and complete before it turns to them; then the pages of copies that are
left over return to the system, before the next layer begins. So at most one layer is there twice, or ``extra_bytes`` of
one: then a layer goes in groups of experts (``batches``), each as a whole layer would. Until ``commit`` the
old tables and the address space behind them stay: ``undo`` writes what was given back again, where it was, layer after
layer from the last to the first, and so takes at no point more room than the way there took. Layers that shrink go
first. Knows no plan, engine or fast tier; takes a ``dispatch`` from whoever calls. NumPy and the kernels only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.plan_copies import Copies, has_several
from moelab.kernels import NodePlacement, Pool, RoutedExperts
from moelab.kernels.copy_memory import CopyMemory, give_back, take_again
from moelab.kernels.node_memory import check_rooms
from moelab.kernels.node_placement import Copy, memory_of_arena
from moelab.kernels.pages import several_nodes
from moelab.kernels.pieces import cut, piece_of
from moelab.migration.batches import batches

Fetch = Callable[[int, int], np.ndarray]
"""(layer, expert) -> its whole block, of an expert that has no home."""


@dataclass
class LayerChange:
    """What a layer, or a batch of it, gains and loses on each node of the pool, int64 [N] bytes; ``nowhere`` lie on no
    known node. ``copies``: what the layer has then; ``experts``: those of a batch."""

    layer: int
    added: np.ndarray
    removed: np.ndarray
    nowhere: int
    copies: Copies
    experts: frozenset[int] = frozenset()

    @property
    def growth(self) -> int:
        return int(self.added.sum() - self.removed.sum()) - self.nowhere


@dataclass
class _Turned:
    """One layer on its way: the tables and copies of before, and what of them is left over."""

    number: int
    layer: RoutedExperts
    new: NodePlacement
    old: NodePlacement | None
    owner: Any
    addresses: np.ndarray
    left: dict[Copy, CopyMemory]
    gave_back: bool = False


@dataclass
class Moves:
    """``layers`` of one engine, one caller, no step meanwhile. ``go``, then ``undo`` or ``commit``, each once.

    ``memory_nodes`` [N]: what the nodes of the copies are bound to, those of the pool or ``[None]`` for one anywhere.
    ``num_added, num_kept, num_removed`` copies, ``added_bytes, removed_bytes``; ``peak_extra_bytes``: the most that
    copies took at once beyond the larger of before and after; ``num_fetched`` experts came from ``fetch``;
    ``unreturned_bytes`` the system kept. ``allow_unbound``: memory that the system does not bind to its node will do.
    ``extra_bytes``: the most that new copies may take before the old ones go (default: those of a layer).
    """

    layers: Sequence[RoutedExperts]
    pool: Pool
    memory_nodes: Sequence[int | None]
    allow_unbound: bool = False
    extra_bytes: int | None = None
    num_added: int = 0
    num_kept: int = 0
    num_removed: int = 0
    added_bytes: int = 0
    removed_bytes: int = 0
    peak_extra_bytes: int = 0
    num_fetched: int = 0
    unreturned_bytes: int = 0
    _turned: list[_Turned] = field(default_factory=list)
    _unplaced: dict[int, set[int]] = field(default_factory=dict)  # by layer: experts that wait in no node's memory

    def differences(self, copies: Sequence[Copies]) -> list[LayerChange]:
        """What ``go`` would do, in its order. Nothing is taken for it."""
        found = []
        for number, (layer, of_layer) in enumerate(zip(self.layers, copies, strict=True)):
            wanted = set(zip(*(column.tolist() for column in of_layer), strict=True))
            before = self._known(layer)
            added, removed = np.zeros((2, len(self.memory_nodes)), np.int64)
            for _, start, stop, node in wanted - before.keys():
                added[node] += piece_of(layer.layout, start, stop).num_bytes
            for copy in before.keys() - wanted:
                removed[copy[3]] += len(before[copy].memory)
            nowhere = 0
            if not before:
                nowhere = sum(len(memory.memory) for memory in self._held(layer).values())
            found.append(LayerChange(number, added, removed, nowhere, of_layer))
        return sorted(found, key=lambda each: each.growth)

    def in_batches(self, differences: Sequence[LayerChange]) -> list[LayerChange]:
        """The same in the same order, layers that add more than ``extra_bytes`` in batches.

        Copies that lie nowhere yet (in an arena) are all to go: those of an expert stay until its batch comes.
        Raises ``ValueError`` where one expert alone adds more.
        """
        found = []
        for each in differences:
            most, layer = self.extra_bytes, self.layers[each.layer]
            if most is None or each.added.sum() <= most:
                found.append(each)
                continue
            held, nowhere = self._known(layer), len(self.memory_nodes)
            if not held:  # as on a node beyond all others, so that no copy is one of those that are wanted
                held = {(*copy[:3], nowhere): memory for copy, memory in self._held(layer).items()}
                self._unplaced[each.layer] = {copy[0] for copy in held}
            wanted = {
                (expert, start, stop, node): piece_of(layer.layout, start, stop).num_bytes
                for expert, start, stop, node in zip(*(column.tolist() for column in each.copies), strict=True)
            }
            sizes = {copy: len(memory.memory) for copy, memory in held.items()}
            for batch in batches(sizes, wanted, nowhere + 1, most, each.layer):
                experts, starts, stops, nodes = batch.copies
                copies = (experts, starts, stops, np.where(nodes == nowhere, 0, nodes))
                added, removed = batch.added[:nowhere], batch.removed[:nowhere]
                lost = int(batch.removed[nowhere])
                found.append(LayerChange(each.layer, added, removed, lost, copies, batch.experts))
        return found

    def _held(self, layer: RoutedExperts) -> dict[Copy, CopyMemory]:
        """All that the layer has."""
        return memory_of_arena(layer.owner) if layer.placement is None else layer.placement.memory_of_copy

    def _known(self, layer: RoutedExperts) -> dict[Copy, CopyMemory]:
        """Copies of the layer that lie on the nodes that the moves speak of: not those of an arena, or of one node."""
        placement = layer.placement
        return {} if placement is None or placement.num_nodes != len(self.memory_nodes) else placement.memory_of_copy

    def check_room(self, differences: Sequence[LayerChange]) -> int:
        """Bytes that the moves take beyond the larger of before and after.

        Raises ``MemoryError`` before anything is taken, where a node or the system has no room for them.
        """
        held, most = np.zeros((2, len(self.memory_nodes)), np.int64)
        total = most_total = 0
        for each in differences:
            most = np.maximum(most, held + each.added)
            most_total = max(most_total, total + int(each.added.sum()))
            held += each.added - each.removed
            total += each.growth
        if several_nodes():
            check_rooms({n: b for n, b in zip(self.memory_nodes, most.tolist(), strict=True) if n is not None})
        if most_total > (available := free_memory_bytes()):
            raise MemoryError(
                f"the moves: expected {most_total / 2**30:.2f} GiB of free memory on the way, got "
                f"{available / 2**30:.2f} GiB: free memory, or apply a plan of fewer copies"
            )
        return most_total - max(0, total)

    def go(
        self,
        copies: Sequence[Copies],
        *,
        slowness: np.ndarray | None = None,
        dispatch: Callable[[int, int], dict[str, Any]] | None = None,
        fetch: Fetch | None = None,
        on_filled: Callable[[], object] = lambda: None,
        on_layer: Callable[[], object] = lambda: None,
    ) -> None:
        """Every layer to its ``copies`` [L]. ``dispatch`` (copies, nodes): arguments of ``NodePlacement`` for it, asked
        where a piece has several copies. ``on_filled``: a layer, or a batch of it, is there twice; ``on_layer``: one is
        where it shall be.

        After an exception ``undo`` leaves everything as it was before.
        """
        order = self.in_batches(self.differences(copies))
        self.peak_extra_bytes = self.check_room(order)
        for each, following in zip(order, [*order[1:], None], strict=True):
            self._move(each.layer, each.copies, each.experts, slowness, dispatch, fetch, on_filled)
            if following is None or following.layer != each.layer:
                on_layer()
        self.num_kept = sum(len(layer.placement.memory_of_copy) for layer in self.layers if layer.placement is not None)
        self.num_kept -= self.num_added

    def _move(
        self,
        number: int,
        copies: Copies,
        batch: frozenset[int],
        slowness: Any,
        dispatch: Any,
        fetch: Fetch | None,
        on_filled: Any,
    ) -> None:
        layer, pool = self.layers[number], self.pool
        old = layer.placement
        keep, unplaced = self._known(layer), self._unplaced.get(number, set())
        if unplaced:
            keep = {
                copy: memory
                for copy, memory in (keep or self._held(layer)).items()
                if copy[0] not in batch or copy[0] not in unplaced
            }
            unplaced -= batch
        gone = np.zeros(layer.num_experts, bool) if old is None else old.homeless
        absent = gone & ~np.isin(np.arange(layer.num_experts), copies[0])  # those of batches to come
        new = NodePlacement(
            layer.layout, layer.num_experts, copies, self.memory_nodes, slowness=slowness, keep=keep,
            homeless=absent,
            **({} if dispatch is None or not has_several(copies) else dispatch(len(copies[0]), len(self.memory_nodes))),
        )  # fmt: skip
        if not self.allow_unbound:
            new.check_bound(self.memory_nodes)
        kept = new.memory_of_copy.keys() - new.new_copies
        left = {copy: memory for copy, memory in self._held(layer).items() if copy not in kept}
        turned = _Turned(number, layer, new, old, layer.owner, layer.address_of_expert, left)
        self._turned.append(turned)
        wanted = sorted({expert for expert, *_ in new.new_copies})
        homeless = set() if old is None else set(np.flatnonzero(old.homeless).tolist())
        if fetch is None and homeless:
            raise ValueError(f"layer {number}: experts without a home, and nobody to fetch them from")

        def fill(worker: int, num_workers: int) -> None:
            for expert in wanted[worker::num_workers]:
                if expert in homeless and fetch is not None:
                    new.fill(expert, fetch(number, expert))
                else:
                    new.fill(expert, layer.owner[expert] if old is None else old[expert])

        pool.run(fill)
        on_filled()
        layer.place(new)
        layer.owner = new
        turned.gave_back = True
        self.unreturned_bytes += sum(len(memory.memory) for memory in left.values() if not give_back(memory))
        self.num_added += len(new.new_copies)
        self.num_removed += len(left)
        self.added_bytes += new.num_new_bytes
        self.removed_bytes += sum(len(memory.memory) for memory in left.values())
        self.num_fetched += len(homeless.intersection(wanted))

    def undo(self) -> list[int]:
        """Every layer back where it was. Returns layers whose node has no room for that by now: they stay, whole.

        That can only be where something else took the memory meanwhile.
        """
        stuck: set[int] = set()
        for turned in reversed(self._turned):
            if turned.number in stuck:  # what its earlier batches had is not all there without the later ones'
                continue
            try:
                self._go_back(turned)
            except MemoryError:
                stuck.add(turned.number)
        self._turned = []
        return sorted(stuck)

    def _go_back(self, turned: _Turned) -> None:
        old, new, layer = turned.old, turned.new, turned.layer
        if turned.gave_back:
            self._take_again(turned)

            def fill(worker: int, num_workers: int) -> None:
                for expert, start, stop, node in list(turned.left)[worker::num_workers]:
                    memory = turned.left[expert, start, stop, node].memory
                    cut(layer.layout, new[expert], piece_of(layer.layout, start, stop), memory)

            self.pool.run(fill)
        layer.place(old, None if old is not None else turned.addresses)
        layer.owner = turned.owner
        for copy in new.new_copies:
            give_back(new.memory_of_copy[copy])
        new.close()

    def _take_again(self, turned: _Turned) -> None:
        taken: list[list[CopyMemory]] = []
        try:
            for node in range(1 if turned.old is None else turned.old.num_nodes):
                mine = [memory for (*_, at), memory in turned.left.items() if at == node]
                memory_node = self.memory_nodes[node] if self._bound(turned) else None
                take_again(mine, memory_node)
                taken.append(mine)
        except MemoryError:
            for memory in (memory for mine in taken for memory in mine):
                give_back(memory)
            raise

    def _bound(self, turned: _Turned) -> bool:
        return turned.old is not None and turned.old.num_nodes == len(self.memory_nodes)

    def commit(self) -> None:
        """No way back from here: what the old tables held goes."""
        for turned in self._turned:
            (turned.owner if turned.old is None else turned.old).close()
        self._turned = []
