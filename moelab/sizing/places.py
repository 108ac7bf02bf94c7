"""Where the bytes of a model must lie on a machine, and whether they fit.  Floor 2.

Three kinds of bytes. What every token reads (attention, dense and shared MLPs, router, head) and the cache must be in
fast memory: on the GPUs where there are any, else in RAM. Routed experts and the embedding table (one row a token)
lie in RAM. Experts may also lie on a GPU that has room, and what fits nowhere may stream from disk, since a
token uses few of them: slow, not impossible. Unified memory is RAM.

Over several nodes experts lie in one of three ways: `split` (rows of each expert over all nodes: all bandwidth
serves each expert), `replicate` (a copy on every node: the same, for N times the memory), `whole` (each expert on one
node: the busiest node of a step decides, `imbalance`).

What the system needs is left out of every memory: assumed here, an argument everywhere. It does not know
fragmentation, page size, or that layers of a GPU come whole: room is counted in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import comb

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.units import GIB, format_gb
from moelab.sizing.recipes import Recipe

SYSTEM_BYTES_PER_NODE = 4 * GIB  # operating system, engine, buffers of activations: assumed
SYSTEM_BYTES_PER_GPU = 2 * GIB  # CUDA context, workspaces, activations: assumed
LAYOUTS = ("split", "replicate", "whole")


@dataclass(frozen=True)
class Need:
    """Bytes of a model at a recipe, context and batch, by what they demand."""

    always_bytes: int  # every token reads them
    cache_bytes: int
    routed_bytes: int
    embedding_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.always_bytes + self.cache_bytes + self.routed_bytes + self.embedding_bytes


@dataclass(frozen=True)
class Places:
    """Where everything lies. `node_bytes` of each node, `fast_bytes` over all GPUs; `routed_fast_bytes` are routed
    experts on GPUs, `streamed_bytes` those that fit nowhere. `lacks` says what does not fit, empty if all does."""

    mode: str  # "hybrid", "cpu" or "fast" (everything on GPUs)
    layout: str
    need: Need
    node_bytes: tuple[int, ...]
    node_room_bytes: tuple[int, ...]
    fast_bytes: int
    fast_room_bytes: int
    routed_fast_bytes: int
    streamed_bytes: int
    lacks: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.lacks

    @property
    def fast_share(self) -> float:
        """Share of the routed bytes that lies on GPUs."""
        return self.routed_fast_bytes / self.need.routed_bytes

    @property
    def streamed_share(self) -> float:
        return self.streamed_bytes / self.need.routed_bytes


def need_of(spec: ModelSpec, recipe: Recipe, context: int, batch: int = 1, kv_format: str = "bf16") -> Need:
    """What `batch` sequences of `context` tokens need. A tied embedding is read as head by every token."""
    sizes = dict(recipe.bytes_of_part(spec))
    routed = sizes.pop("routed_experts")
    embedding = 0 if spec.tie_word_embeddings else sizes.pop("embedding")
    return Need(sum(sizes.values()), spec.kv_cache_bytes(context, batch, kv_format), routed, embedding)


def place(
    need: Need,
    machine: Machine,
    *,
    layout: str = "split",
    routed_fast_bytes: int | None = None,
    system_bytes_per_node: int = SYSTEM_BYTES_PER_NODE,
    system_bytes_per_gpu: int = SYSTEM_BYTES_PER_GPU,
) -> Places:
    """Place `need` on `machine`. `routed_fast_bytes`: experts to put on the GPUs; `None`: as many as RAM lacks.

    ValueError for an unknown layout, or more experts on the GPUs than their room or the model has.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    node_room = tuple(max(0, node.memory_bytes - system_bytes_per_node) for node in machine.nodes)
    gpus = () if machine.unified_memory else machine.fast_tiers
    fast_room = sum(max(0, gpu.memory_bytes - system_bytes_per_gpu) for gpu in gpus)
    if gpus and need.total_bytes <= fast_room and routed_fast_bytes is None:
        return Places(
            "fast",
            layout,
            need,
            (0,) * len(node_room),
            node_room,
            need.total_bytes,
            fast_room,
            need.routed_bytes,
            0,
            (),
        )
    mode = "hybrid" if gpus else "cpu"
    on_fast = need.always_bytes + need.cache_bytes if gpus else 0
    spare = max(0, fast_room - on_fast)
    beside = need.embedding_bytes + (0 if gpus else need.always_bytes + need.cache_bytes)
    room = sum(node_room) - beside if layout != "replicate" else _replica_room(node_room, beside)
    short = max(0, need.routed_bytes - max(0, room))
    if routed_fast_bytes is not None and not 0 <= routed_fast_bytes <= min(spare, need.routed_bytes):
        raise ValueError(
            f"{format_gb(routed_fast_bytes)} of experts on the GPUs, expected at most "
            f"{format_gb(min(spare, need.routed_bytes))}, what is left of their memory"
        )
    routed_fast = min(short, spare) if routed_fast_bytes is None else routed_fast_bytes
    streamed = max(0, short - routed_fast)
    in_ram = need.routed_bytes - routed_fast - streamed
    lacks = []
    if on_fast > fast_room:
        left = max(0, fast_room - need.always_bytes)
        lacks.append(
            f"GPUs hold {format_gb(fast_room)}, every token needs {format_gb(on_fast)} there: "
            f"{format_gb(left)} are left for a cache of {format_gb(need.cache_bytes)}"
        )
    if beside > sum(node_room):
        lacks.append(f"RAM holds {format_gb(sum(node_room))}, every token needs {format_gb(beside)} there")
    if streamed:
        lacks.append(f"{format_gb(streamed)} of experts fit nowhere and would stream from disk")
    copies = len(node_room) if layout == "replicate" else 1
    node_bytes = _over_nodes(beside + in_ram, node_room) if copies == 1 else _replicas(beside, in_ram, node_room)
    return Places(
        mode, layout, need, node_bytes, node_room, on_fast + routed_fast, fast_room, routed_fast, streamed, tuple(lacks)
    )


def _replica_room(node_room: tuple[int, ...], beside: int) -> int:
    """Bytes of experts that every node can hold a copy of, when the rest takes what is left anywhere."""
    return min(min(node_room), (sum(node_room) - beside) // len(node_room))


def _over_nodes(num_bytes: int, node_room: tuple[int, ...]) -> tuple[int, ...]:
    """Spread in proportion to the room, so that no node is full before another."""
    total = sum(node_room) or 1
    shares = [num_bytes * room // total for room in node_room]
    shares[0] += num_bytes - sum(shares)
    return tuple(shares)


def _replicas(beside: int, routed: int, node_room: tuple[int, ...]) -> tuple[int, ...]:
    left = tuple(max(0, room - routed) for room in node_room)
    return tuple(routed + rest for rest in _over_nodes(beside, left))


def imbalance(num_experts: int, distinct: int, num_nodes: int) -> float:
    """Busiest node over the mean, when `distinct` of E experts are drawn uniformly and each lies whole on a node.

    Exact: E [max over nodes] of a multivariate hypergeometric draw, by counting the draws whose nodes all stay at or
    below m. Real routing is more uneven between experts; a placement by load is less so. ValueError where more
    are drawn than there are.
    """
    if not 1 <= distinct <= num_experts or num_nodes < 1:
        raise ValueError(f"{distinct} of {num_experts} experts on {num_nodes} nodes, expected 1 to {num_experts}")
    sizes = [len(range(node, num_experts, num_nodes)) for node in range(num_nodes)]
    total = comb(num_experts, distinct)
    expected, below_before = Fraction(0), 0
    for most in range(distinct + 1):
        ways = [1] + [0] * distinct
        for size in sizes:
            row = [comb(size, count) for count in range(min(most, size, distinct) + 1)]
            ways = [sum(ways[k - c] * row[c] for c in range(min(k + 1, len(row)))) for k in range(distinct + 1)]
        expected += most * Fraction(ways[distinct] - below_before, total)
        below_before = ways[distinct]
    return float(expected / Fraction(distinct, num_nodes))
