"""The routed experts of one layer: y[t] = sum over slots of gate weight * expert(x[t]).

Phases: pairs are grouped by expert (caller), x is quantised, gate_up over units of 32 intermediate
rows, down over units of 16 output rows, combine in slot order, a barrier between each two. Units are whole
output rows, so any worker count gives the same bits. A step that reads little runs on the caller alone
(``ALONE_BYTES``). Does not know models, tiers or who loads the weights. Floor 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moelab.domain.trace import NO_EXPERT
from moelab.kernels import native
from moelab.kernels.isa import IsaChoice, choose_isa
from moelab.kernels.job import ACTIVATIONS_OF_FORMAT, Activation, carried
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.native_phases import NativePhases
from moelab.kernels.node_placement import NodePlacement
from moelab.kernels.pool import Pool
from moelab.kernels.shared_rows import ALL_NODES

if TYPE_CHECKING:
    from moelab.kernels.phases import NumbaPhases

# Below this many bytes of (pairs x expert) the caller alone is faster than waking the workers; measured at H 256, I
# 128 (Numba's: docs/log.md, 2026-11-22, kernels; the log has no figure of the native one). Numba workers take a
# dispatch for each phase, native ones a single one.
ALONE_BYTES = {"numba": 4_000_000, "native": 400_000}


def workers_of(pool: Pool | None, isa: str, num_bytes: int) -> Pool | None:
    """The pool that serves a layer-step of ``num_bytes`` (pairs x expert), ``None`` for the caller alone."""
    if pool is None or pool.num_workers == 1 or num_bytes < ALONE_BYTES["numba" if isa == "numba" else "native"]:
        return None
    return pool


class RoutedExperts:
    """Experts at ``address_of_expert`` (int64 [E], 64-byte aligned, layout ``layout``).

    ``isa`` and ``activation`` default to the fastest available and to the mode of the format (int8 for int4,
    bf16 for bf16, f32 for float32); ``isa`` may be a choice that was made before, with its reason. What was chosen
    stands in ``isa`` (``IsaChoice``) and ``activation``. ``pool`` is not owned; ``None`` runs on the caller. The memory
    behind the addresses must outlive this object (``owner`` is only held, for example the arena).
    ``node_of_expert`` [E] says which node of the pool holds an expert: only that node's workers read it; without it
    every worker reads every expert. For a single expert ``[ALL_NODES]`` is that its rows are shared out over the nodes
    (``shared_rows``). ``placement`` instead: pieces and copies on nodes, of which each step reads those
    that dispatch chooses. Not for concurrent calls: one object, one caller.

    Counters, kept by the kernels: ``bytes_read`` of weights and ``bytes_of_node``, ``seconds`` and ``seconds_of_node``,
    ``tail_seconds``, ``num_calls``; ``counts.Counts`` takes them of many layers at once.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        address_of_expert: np.ndarray,
        isa: str | IsaChoice | None = None,
        activation: Activation | None = None,
        pool: Pool | None = None,
        owner: Any = None,
        node_of_expert: np.ndarray | None = None,
        placement: NodePlacement | None = None,
    ) -> None:
        address_of_expert = np.ascontiguousarray(address_of_expert, np.int64)
        if address_of_expert.ndim != 1 or not 1 <= len(address_of_expert) < NO_EXPERT:
            raise ValueError(
                f"address_of_expert: expected int64 [E], 1 <= E < 65535; got {list(address_of_expert.shape)}"
            )
        if (address_of_expert % 64 != 0).any() or (address_of_expert == 0).any():
            raise ValueError("address_of_expert: expected multiples of 64, not 0: take them from an ExpertArena")
        modes = ACTIVATIONS_OF_FORMAT[layout.weight_format]
        if activation is not None and activation not in modes:
            raise ValueError(
                f"activation for {layout.weight_format} weights: expected one of {', '.join(modes)}; got {activation!r}"
            )
        self.isa: IsaChoice = isa if isinstance(isa, IsaChoice) else choose_isa(isa)
        self.is_shared = False
        if placement is not None:
            self._check_placement(placement, pool, node_of_expert)
        if node_of_expert is not None:
            if self.isa.isa == "numba":
                raise ValueError("node_of_expert: expected a native isa; got numba, whose workers know no nodes")
            node_of_expert = np.asarray(node_of_expert)
            if node_of_expert.dtype.kind not in "iu":
                raise ValueError(f"node_of_expert: expected integers; got {node_of_expert.dtype}")
            num_nodes = 1 if pool is None else pool.num_nodes
            self.is_shared = node_of_expert.tolist() == [ALL_NODES]
            wrong = ((node_of_expert < 0) | (node_of_expert >= num_nodes)).any() and not self.is_shared
            if node_of_expert.shape != address_of_expert.shape or wrong:
                raise ValueError(
                    f"node_of_expert: expected [{len(address_of_expert)}] of nodes 0..{num_nodes - 1} of the pool; got "
                    f"{list(node_of_expert.shape)}, nodes {sorted(set(node_of_expert.tolist()))}"
                )
        self.layout = layout
        self.address_of_expert = address_of_expert
        if node_of_expert is not None:
            node_of_expert = np.ascontiguousarray(node_of_expert, np.int32)
        self.node_of_expert = node_of_expert
        self.placement = placement
        self.activation: Activation = activation or modes[0]
        self.pool = pool
        self.owner = owner
        self._phases: NumbaPhases | NativePhases
        if self.isa.isa == "numba":
            from moelab.kernels.phases import NumbaPhases  # imports Numba, which nothing native needs

            self._phases = NumbaPhases(layout, self.activation, address_of_expert)
        else:
            table = native.kernel_table(self.isa.isa, layout.weight_format, self.activation)
            self._phases = NativePhases(
                layout, self.activation, self.isa.isa, address_of_expert, node_of_expert, table, placement
            )

    def place(self, placement: NodePlacement | None, address_of_expert: np.ndarray | None = None) -> None:
        """Read another placement from the next layer-step on, or whole experts at ``address_of_expert`` [E] again.

        Not while a step runs. Counters go on. Programs that copied ``native_struct`` must be made anew.
        """
        if placement is not None:
            self._check_placement(placement, self.pool, self.node_of_expert)
            address_of_expert = placement.addresses
        assert address_of_expert is not None
        self.address_of_expert, self.placement = np.ascontiguousarray(address_of_expert, np.int64), placement
        assert isinstance(self._phases, NativePhases)
        self._phases.place(self.address_of_expert, placement)

    def _check_placement(self, placement: NodePlacement, pool: Pool | None, node_of_expert: np.ndarray | None) -> None:
        num_nodes = 1 if pool is None else pool.num_nodes
        if self.isa.isa == "numba":
            raise ValueError("placement: expected a native isa; got numba, whose workers know no nodes")
        if node_of_expert is not None:
            raise ValueError("got placement and node_of_expert, expected one of them")
        if placement.num_nodes not in (1, num_nodes):
            raise ValueError(f"placement: expected the {num_nodes} nodes of the pool; got {placement.num_nodes}")

    @property
    def carried(self) -> str:
        """The numbers that activations are multiplied as: those of the mode, or ``int16``."""
        return carried(self.activation, self.layout.weight_format, self.isa.isa)

    @property
    def num_experts(self) -> int:
        return len(self.address_of_expert)

    @property
    def num_nodes(self) -> int:
        """Nodes that counters tell apart: those of the pool where experts are placed on them, else 1."""
        if self.placement is not None:
            return self.placement.num_nodes
        return 1 if self.pool is None or self.node_of_expert is None else self.pool.num_nodes

    def workers(self, num_pairs: int) -> Pool | None:
        """Who computes a layer-step of ``num_pairs`` (T x K); ``None``: the caller alone.

        Experts that are placed on several nodes are always read by their own node's workers, however little it is.
        """
        if self.num_nodes > 1 and not self.is_shared:
            return self.pool
        return workers_of(self.pool, self.isa.isa, num_pairs * self.layout.expert_bytes)

    def forward(
        self, x: np.ndarray, expert_ids: np.ndarray, gate_weights: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """x float32 [T, H], expert_ids integer [T, K] (65535: unrouted), gate_weights float32 [T, K] -> [T, H].

        ``out`` (float32 [T, H], C order) is overwritten and returned; without it one is allocated.
        Raises ``ValueError`` for shapes, types or expert ids that do not fit.
        """
        shape = expert_ids.shape
        if len(shape) != 2 or x.shape != (shape[0], self.layout.hidden_size) or gate_weights.shape != shape:
            raise ValueError(
                f"forward: expected x [T, {self.layout.hidden_size}], expert_ids [T, K], gate_weights [T, K]; "
                f"got {list(x.shape)}, {list(shape)}, {list(gate_weights.shape)}"
            )
        if expert_ids.dtype.kind not in "ui":
            raise ValueError(f"expert_ids: expected integers; got {expert_ids.dtype}")
        if out is None:
            out = np.empty(x.shape, np.float32)
        elif out.shape != x.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"out: expected float32 {list(x.shape)} in C order; got {out.dtype} {list(out.shape)}")
        if shape[0] == 0:
            return out
        pool = self.workers(shape[0] * shape[1])
        bad_token = self._phases.forward(pool, x, expert_ids, gate_weights, out)
        if bad_token >= 0:
            raise ValueError(
                f"expert_ids of token {bad_token}: expected 0..{self.num_experts - 1} or {NO_EXPERT} (unrouted); "
                f"got {expert_ids[bad_token].tolist()}"
            )
        return out

    __call__ = forward

    def share_scratch(self, other: RoutedExperts) -> None:
        """Use the buffers of ``other``: layers of one model that run one after the other need only one set.

        Raises ``ValueError`` where layout, mode or kind of ISA differ.
        """
        mine, others = self._phases, other._phases
        if self.layout != other.layout or self.activation != other.activation or self.num_experts > other.num_experts:
            raise ValueError(f"share_scratch: expected a layer like {self.layout}; got {other.layout}")
        if type(mine) is not type(others):
            raise ValueError(f"share_scratch: expected isa {self.isa.isa}; got {other.isa.isa}")
        mine.share_scratch(others)  # type: ignore[arg-type]

    @property
    def native_struct(self) -> native.Forward:
        """``moelab_forward`` of this layer without inputs and buffers. Raises ``ValueError`` for Numba."""
        if not isinstance(self._phases, NativePhases):
            raise ValueError(f"native struct: expected a native isa; got {self.isa.isa}")
        return self._phases.struct

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that the kernels counted as read."""
        return sum(self._phases.bytes_of_node)

    @property
    def bytes_of_node(self) -> list[int]:
        """The same by node of the pool."""
        return self._phases.bytes_of_node[: self.num_nodes]

    @property
    def seconds_of_node(self) -> list[float]:
        """Time of a node's own work, summed over calls: until its last worker was done with gate_up, and with down.

        Its waits for other nodes after each of the two are not inside: all workers meet there. Numba's workers know no
        nodes, and all of the time is that of the one.
        """
        return self._phases.seconds_of_node[: self.num_nodes]

    @property
    def seconds(self) -> float:
        """Time spent in the kernels: native ones count the library call, without the copies of inputs and output."""
        return self._phases.seconds

    @property
    def tail_seconds(self) -> float | None:
        """Waits of the first worker that was done for the last, after gate_up and after down; ``None`` for Numba.

        Summed over calls: the part of their time in which not all workers worked.
        """
        return self._phases.tail_seconds if isinstance(self._phases, NativePhases) else None

    @property
    def num_calls(self) -> int:
        return self._phases.num_calls
