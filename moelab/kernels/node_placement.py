"""NodePlacement: the experts of one layer on several nodes, whole or in pieces, with one copy or several.

Holds the copies, one mapping for each node and bound to it, and the tables that the native layer-step reads
(``moelab_placement``): per step it takes the pieces of the active experts, asks ``dispatch`` which copy serves each
where there is a choice, and lets each node's workers read their own. An expert may be ``homeless``: no copy anywhere,
and a step that routes to it is refused. Knows pieces and addresses. Does not know plans, models or how copies are
chosen (the address of a C function is given). Floor 1: NumPy and ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np

from moelab.kernels import native
from moelab.kernels.arena import ExpertArena
from moelab.kernels.copy_memory import CopyMemory, give_back, take_memory
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.pieces import Piece, cut, join, num_units, piece_of, put

Copy = tuple[int, int, int, int]  # expert, start, stop, node


class NodePlacement:
    """Copies ``(expert, start, stop, node)`` of E experts: int arrays [C], units of 32 intermediate rows.

    The distinct pieces of an expert partition it; a copy is a piece on a node. ``memory_node_of_node`` [N] as in
    ``Pool``. ``slowness`` float64 [N]: time of a byte on each node, equal by default. ``dispatch``: address of a
    ``moelab_dispatch_fn``, needed where a piece has several copies, with ``dispatch_scratch`` int64 numbers of scratch.
    ``keep`` is another placement of these experts, or the memory of copies: those that it has too stay where they are,
    and ``num_new_bytes`` are those that must be filled. ``homeless`` bool [E]: experts without a copy, none by default.
    ``late`` uint8 [E] may be written between steps: reads of those experts count in ``late_bytes`` int64 [N] too.

    Raises ``ValueError`` for pieces that do not partition an expert, nodes that do not exist, a copy given twice or
    several copies without ``dispatch``; ``MemoryError`` where a node has no room.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        num_experts: int,
        copies: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        memory_node_of_node: Sequence[int | None],
        *,
        slowness: np.ndarray | None = None,
        dispatch: int | None = None,
        dispatch_scratch: int = 0,
        keep: NodePlacement | Mapping[Copy, CopyMemory] | None = None,
        homeless: np.ndarray | None = None,
    ) -> None:
        self.layout, self.num_experts, self.num_nodes = layout, num_experts, len(memory_node_of_node)
        rows = np.stack([np.asarray(column, np.int64) for column in copies], axis=1)
        self.homeless = np.zeros(num_experts, bool) if homeless is None else np.array(homeless, bool)
        _check(rows, num_experts, self.num_nodes, num_units(layout), self.homeless)
        keys, piece_of_copy = np.unique(rows[:, :3], axis=0, return_inverse=True)
        self.ranges = keys  # int64 [P, 3]: expert, start, stop
        self.pieces: list[Piece] = [piece_of(layout, int(start), int(stop)) for _, start, stop in keys]
        self.nodes_of_piece = np.zeros(len(keys), np.int64)
        np.bitwise_or.at(self.nodes_of_piece, piece_of_copy.ravel(), np.int64(1) << rows[:, 3])
        if dispatch is None and (self.nodes_of_piece & (self.nodes_of_piece - 1)).any():
            raise ValueError(
                "placement: some pieces have several copies; give the address of dispatch, or one copy each"
            )
        needed = 5 * self.num_nodes + 4 * len(keys) + 1
        if dispatch is not None and dispatch_scratch < needed:
            raise ValueError(f"dispatch_scratch: expected {needed} or more for these pieces; got {dispatch_scratch}")
        if slowness is not None and (np.shape(slowness) != (self.num_nodes,) or not (np.asarray(slowness) > 0).all()):
            raise ValueError(f"slowness: expected {self.num_nodes} positive numbers; got {slowness}")
        self.piece_of_expert = np.searchsorted(keys[:, 0], np.arange(num_experts + 1)).astype(np.int64)
        self.piece_bytes = np.array([piece.num_bytes for piece in self.pieces], np.int64)
        if isinstance(keep, NodePlacement):
            keep = keep.memory_of_copy if keep.layout == layout else None
        kept = {} if keep is None else keep
        self.memory_of_copy: dict[Copy, CopyMemory] = {}
        self.new_copies: set[Copy] = set()
        for node, memory_node in enumerate(memory_node_of_node):
            here = [self._copy_of(piece, node) for piece in np.flatnonzero(self.nodes_of_piece >> node & 1).tolist()]
            self.memory_of_copy |= {copy: kept[copy] for copy in here if copy in kept}
            missing = [copy for copy in here if copy not in kept]
            sizes = [piece_of(layout, start, stop).num_bytes for _, start, stop, _ in missing]
            try:
                new = take_memory(sizes, memory_node)
            except MemoryError as error:
                raise MemoryError(f"placement of {len(missing)} copies on node {node}: {error}") from error
            self.memory_of_copy |= dict(zip(missing, new, strict=True))
            self.new_copies |= set(missing)
        self.address_of_copy = np.zeros((len(keys), self.num_nodes), np.int64)
        for piece in range(len(keys)):
            for node in range(self.num_nodes):
                if (copy := self._copy_of(piece, node)) in self.memory_of_copy:
                    self.address_of_copy[piece, node] = self.memory_of_copy[copy].memory.ctypes.data
        self.struct = self._struct(slowness, dispatch, dispatch_scratch)

    @classmethod
    def of_arena(cls, arena: ExpertArena, homeless: np.ndarray | None = None) -> NodePlacement:
        """Whole experts where an arena has them, as of one node: no byte moves. Its memory lives as long as they do."""
        units, gone = num_units(arena.layout), np.zeros(len(arena), bool) if homeless is None else np.asarray(homeless)
        held = memory_of_arena(arena)
        here = np.flatnonzero(~gone)
        zeros = np.zeros(len(here), np.int64)
        return cls(arena.layout, len(arena), (here, zeros, zeros + units, zeros), [None], keep=held, homeless=gone)

    def _copy_of(self, piece: int, node: int) -> Copy:
        expert, start, stop = self.ranges[piece].tolist()
        return expert, start, stop, node

    @property
    def num_new_bytes(self) -> int:
        """Of the copies that no placement had before."""
        return sum(len(self.memory_of_copy[copy].memory) for copy in self.new_copies)

    @property
    def scratch_length(self) -> int:
        """int64 numbers that dispatch was given."""
        return len(self._arrays["scratch"])

    @property
    def slowness(self) -> np.ndarray:
        """float64 [N], what dispatch is told."""
        return self._arrays["slowness"]

    @property
    def addresses(self) -> np.ndarray:
        """int64 [E]: some block of each expert, 0 of the homeless."""
        found = np.zeros(self.num_experts, np.int64)
        first = self.address_of_copy[self.piece_of_expert[:-1][~self.homeless]]
        found[~self.homeless] = first[np.arange(len(first)), (first > 0).argmax(1)]
        return found

    @property
    def bytes_of_node(self) -> np.ndarray:
        """int64 [N] of all copies, without alignment."""
        has = self.nodes_of_piece[:, None] >> np.arange(self.num_nodes) & 1
        return (has * self.piece_bytes[:, None]).sum(0)

    @property
    def binding(self) -> str:
        return ", ".join(dict.fromkeys(each.binding for each in self.memory_of_copy.values()))

    def check_bound(self, memory_nodes: Sequence[int | None]) -> None:
        """``OSError`` where copies on real nodes [N], several, were to be bound to them and the system refused."""
        for copy, memory in self.memory_of_copy.items() if len(memory_nodes) > 1 else ():
            if memory_nodes[copy[3]] is not None and memory.binding.startswith("unavailable"):
                raise OSError(
                    f"expert {copy[0]}: expected memory bound to node{memory_nodes[copy[3]]}, got {memory.binding} "
                    "(containers often forbid mbind): allow it (CAP_SYS_NICE), or run with allow_unbound "
                    "(--allow-unbound), where pages lie on the node of their first writer"
                )

    @property
    def huge_pages(self) -> str:
        return ", ".join(dict.fromkeys(each.pages for each in self.memory_of_copy.values()))

    @property
    def blocks(self) -> list[np.ndarray]:
        """What it holds in memory: a block for each copy."""
        return [each.memory for each in self.memory_of_copy.values()]

    def __len__(self) -> int:
        return self.num_experts

    def copy(self, piece: int, node: int) -> np.ndarray:
        """Writable view of a copy, uint8 [piece bytes]; raises ``KeyError`` where the node has none."""
        if not self.memory_of_copy:
            raise ValueError("placement is closed: create a new one")
        if not self.nodes_of_piece[piece] >> node & 1:
            raise KeyError(f"node {node} has no copy of piece {piece}")
        return self.memory_of_copy[self._copy_of(piece, node)].memory

    def __getitem__(self, expert: int) -> np.ndarray:
        """The whole block of an expert put together again from the first copy of each piece, uint8 [expert_bytes].

        Raises ``KeyError`` for a homeless one.
        """
        if not 0 <= expert < self.num_experts:
            raise IndexError(f"expert: expected 0..{self.num_experts - 1}; got {expert}")
        if self.homeless[expert]:
            raise KeyError(f"expert {expert} has no home in this placement")
        block = np.empty(self.layout.expert_bytes, np.uint8)
        for piece in range(int(self.piece_of_expert[expert]), int(self.piece_of_expert[expert + 1])):
            node = int(self.nodes_of_piece[piece] & -self.nodes_of_piece[piece]).bit_length() - 1
            join(self.layout, self.copy(piece, node), self.pieces[piece], block)
        return block

    def fill(self, expert: int, block: np.ndarray) -> None:
        """Write the new copies of every piece of an expert from its whole block, uint8 [expert_bytes]."""
        for piece in range(int(self.piece_of_expert[expert]), int(self.piece_of_expert[expert + 1])):
            for node in range(self.num_nodes):
                if (copy := self._copy_of(piece, node)) in self.new_copies:
                    cut(self.layout, block, self.pieces[piece], self.memory_of_copy[copy].memory)

    def write(self, expert: int, start: int, part: np.ndarray) -> None:
        """``part`` uint8 are the bytes [start, start + len) of the whole block: into every copy of its pieces."""
        for piece in range(int(self.piece_of_expert[expert]), int(self.piece_of_expert[expert + 1])):
            for node in range(self.num_nodes):
                if self.nodes_of_piece[piece] >> node & 1:
                    put(self.layout, part, start, self.pieces[piece], self.copy(piece, node))

    def only_copy(self, expert: int) -> np.ndarray | None:
        """Writable view of the whole expert where it has a single copy in one piece; ``None`` elsewhere."""
        piece = int(self.piece_of_expert[expert])
        mask = int(self.nodes_of_piece[piece]) if not self.homeless[expert] else 0
        if self.piece_of_expert[expert + 1] != piece + 1 or mask & (mask - 1) or not mask:
            return None
        return self.copy(piece, mask.bit_length() - 1)

    def left_over(self, following: NodePlacement | None) -> dict[Copy, CopyMemory]:
        """Copies that ``following`` does not keep."""
        kept = {} if following is None else following.memory_of_copy
        return {copy: each for copy, each in self.memory_of_copy.items() if copy not in kept}

    def release(self, following: NodePlacement | None = None) -> int:
        """Give the pages of all copies that ``following`` does not keep back to the system; bytes that returned.

        Nothing may read this placement afterwards.
        """
        returned, gone = 0, self.left_over(following).values()
        for each in gone:
            returned += len(each.memory) if give_back(each) else 0
        self.close()
        return returned

    def close(self) -> None:
        """Forget the copies; their memory goes when nobody holds a view of it. Twice is harmless."""
        self.memory_of_copy = {}
        self.address_of_copy[:] = 0

    def __enter__(self) -> NodePlacement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _struct(self, slowness: np.ndarray | None, dispatch: int | None, num_scratch: int) -> native.Placement:
        num_pieces, num_nodes = len(self.pieces), self.num_nodes
        geometry = {
            name: np.array([getattr(piece, name) for piece in self.pieces], np.int64)
            for name in ("first_group", "num_groups", "first_row", "num_rows")
        }
        integers = ("masks", "sizes", "piece_of_job", "expert_of_job", "expert_of_entry", "weights_of_entry")
        self._arrays: dict[str, np.ndarray] = {
            "piece_of_expert": self.piece_of_expert, **geometry, "piece_bytes": self.piece_bytes,
            "nodes_of_piece": self.nodes_of_piece, "address_of_copy": self.address_of_copy,
            "slowness": np.ascontiguousarray(np.ones(num_nodes) if slowness is None else slowness, np.float64),
            **{name: np.zeros(num_pieces, np.int64) for name in (*integers, "group_of_entry", "row_of_entry")},
            "node_of_job": np.zeros(num_pieces, np.int32), "loads": np.zeros(num_nodes),
            "scratch": np.zeros(max(1, num_scratch), np.int64),
            "up_start": np.zeros(num_pieces + 1, np.int64), "down_start": np.zeros(num_pieces + 1, np.int64),
            "late_of_expert": np.zeros(self.num_experts, np.uint8), "late_bytes_of_node": np.zeros(num_nodes, np.int64),
        }  # fmt: skip
        self.late, self.late_bytes = self._arrays["late_of_expert"], self._arrays["late_bytes_of_node"]
        addresses = {name: array.ctypes.data for name, array in self._arrays.items()}
        return native.sized(native.Placement, num_nodes=num_nodes, dispatch=dispatch, **addresses)

    @property
    def struct_address(self) -> int:
        return ctypes.addressof(self.struct)

    def nodes_of_step(self) -> np.ndarray:
        """int64 [N]: bytes that each node read in the last layer-step, as dispatch chose."""
        # After forward: entries are sorted by node, and each job says its node.
        stop = int(self.struct.num_entries)
        node, piece = self._arrays["node_of_job"][:stop], self._arrays["piece_of_job"][:stop]
        return np.bincount(node, self.piece_bytes[piece], minlength=self.num_nodes).astype(np.int64)


def memory_of_arena(arena: ExpertArena) -> dict[Copy, CopyMemory]:
    """Every expert of an arena as a whole copy on node 0."""
    units = num_units(arena.layout)
    return {
        (expert, 0, units, 0): CopyMemory(arena[expert], arena.huge_pages, arena.binding)
        for expert in range(len(arena))
    }


def _check(rows: np.ndarray, num_experts: int, num_nodes: int, units: int, homeless: np.ndarray) -> None:
    if num_nodes < 1 or num_nodes > native.MAX_NODES:
        raise ValueError(f"nodes: expected 1 to {native.MAX_NODES}; got {num_nodes}")
    for name, column, bound in (("expert", rows[:, 0], num_experts), ("node", rows[:, 3], num_nodes)):
        if len(column) and (column.min() < 0 or column.max() >= bound):
            raise ValueError(f"placement: expected {name} 0..{bound - 1}; got {column.min()}..{column.max()}")
    if len(np.unique(rows, axis=0)) != len(rows):
        raise ValueError("placement: a copy is given twice: name each once")
    pieces = np.unique(rows[:, :3], axis=0)
    for expert in range(num_experts):
        mine = pieces[pieces[:, 0] == expert]
        if homeless[expert]:
            if len(mine):
                raise ValueError(f"placement: expert {expert} is homeless and has copies, expected one of both")
            continue
        ends = [0, *mine[:, 2].tolist()]
        if mine[:, 1].tolist() != ends[:-1] or ends[-1] != units:
            raise ValueError(
                f"placement: pieces of expert {expert} are {mine[:, 1:].tolist()}, expected a partition of [0, {units})"
            )
