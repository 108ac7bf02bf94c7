"""Routed experts into memory: an arena for each MoE layer, or homes on nodes, filled strip by strip by all workers.

Strips are taken in the order of the files, as the disk likes it. On nodes a strip goes straight into the copy that
takes it; where an expert has several copies, or pieces, it is packed beside them and written into each. It knows
formats and memory; it does not know names, plans or where the strips come from (`expert_tensors`). Floor 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelab.domain.free_memory import free_memory_bytes
from moelab.domain.model import ModelSpec
from moelab.engine.expert_tensors import ExpertTensors, Parts, Strip
from moelab.engine.strips import STRIP_BYTES
from moelab.kernels.arena import ExpertArena
from moelab.kernels.isa import choose_isa
from moelab.kernels.job import ACTIVATIONS, ACTIVATIONS_OF_FORMAT, Activation, WeightFormat
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.node_arenas import round_robin
from moelab.kernels.node_placement import NodePlacement
from moelab.kernels.pages import bytes_in_reserve, is_reserved
from moelab.kernels.pieces import num_units
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts
from moelab.kernels.scratch import aligned
from moelab.kernels.tasks import Tasks

Homes = Sequence[ExpertArena | NodePlacement]
"""Of every MoE layer."""


def choose_formats(experts: list[ExpertTensors], asked: Activation | None) -> tuple[WeightFormat, Activation]:
    """Weight format in memory and activation mode, from the stored format and what was asked for."""
    stored = {layer.stored_format() for layer in experts}
    if len(stored) != 1:
        raise ValueError(f"experts: expected one format in all layers, got {sorted(stored)}; convert the checkpoint")
    weight_format = stored.pop()
    return ("float32", "f32") if asked == "f32" else (weight_format, choose_activation(weight_format, asked, "f32"))


def choose_activation(weight_format: WeightFormat, asked: Activation | None, *more: str) -> Activation:
    """The mode that was asked for, or the default of the format; `more` are named among the possible ones."""
    modes = ACTIVATIONS_OF_FORMAT[weight_format]
    if asked is None:
        return modes[0]
    if asked not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {asked!r}; leave it out")
    if asked not in modes:
        raise ValueError(
            f"activation for {weight_format} experts: expected one of {', '.join(dict.fromkeys((*modes, *more)))}, "
            f"got {asked!r}; leave it out for {modes[0]}"
        )
    return asked


def expert_layout(spec: ModelSpec, weight_format: WeightFormat) -> ExpertLayout:
    return ExpertLayout(spec.hidden_size, spec.moe_intermediate_size, weight_format)


def new_arenas(num_layers: int, num_experts: int, layout: ExpertLayout) -> list[ExpertArena]:
    """Empty ones. MemoryError before the first page is touched."""
    sizes = [num_experts * layout.expert_bytes] * num_layers
    check_memory(sum(sizes) - bytes_in_reserve(sizes))
    return [ExpertArena(layout, num_experts) for _ in range(num_layers)]


def new_homes(num_layers: int, num_experts: int, layout: ExpertLayout, isa: str | None, pool: Pool) -> Homes:
    """Empty homes where no plan says which: round-robin over the nodes of a machine of several, like `bench kernels`.

    Arenas, which lie where they are written first and are read by every worker, where there is one node, where nodes
    are virtual or the workers Numba's, who know none, and where a node has no room for its share.
    """
    if pool.num_nodes == 1 or pool.virtual or choose_isa(isa).isa == "numba":
        return new_arenas(num_layers, num_experts, layout)
    check_memory(num_layers * num_experts * layout.expert_bytes)
    try:
        return [round_robin_placement(layout, num_experts, pool) for _ in range(num_layers)]
    except MemoryError:  # unequal nodes: all together may have it, and `Engine.binding` says that nothing is bound
        return new_arenas(num_layers, num_experts, layout)


def round_robin_placement(layout: ExpertLayout, num_experts: int, pool: Pool) -> NodePlacement:
    """Whole experts, e on node e mod N of the pool."""
    experts = np.arange(num_experts)
    whole = (experts, np.zeros_like(experts), np.full_like(experts, num_units(layout)))
    nodes = round_robin(1, num_experts, pool.num_nodes)[0]
    return NodePlacement(layout, num_experts, (*whole, nodes), pool.memory_node_of_node)


def fill_homes(experts: list[ExpertTensors], homes: Homes, layout: ExpertLayout, tasks: Tasks) -> None:
    """The homes of these layers, to be packed by `tasks`."""
    # Words of int4 that become float32 are widened by NumPy, which takes 16 times their bytes.
    widened = layout.weight_format == "float32" and experts[0].form == "packed"
    strip_bytes = STRIP_BYTES // 16 if widened else STRIP_BYTES
    strips = [(strip, layer) for layer in range(len(experts)) for strip in experts[layer].strips(strip_bytes)]
    strips.sort(key=lambda pair: pair[0].place)
    for strip, layer in strips:
        filling = Filling(experts[layer], strip, homes[layer], layout)
        tasks.add(strip.num_bytes, filling.pack, filling.ahead)


class Filling:
    """One strip on its way into its home; what is known of its places in the files is found once."""

    __slots__ = ("home", "layout", "parts", "source", "strip")

    def __init__(
        self, source: ExpertTensors, strip: Strip, home: ExpertArena | NodePlacement, layout: ExpertLayout
    ) -> None:
        self.source, self.strip, self.home, self.layout = source, strip, home, layout
        self.parts: Parts | None = None

    def ahead(self) -> None:
        """The same thread packs it soon."""
        self.parts = self.source.parts(self.strip)
        self.source.ahead(self.parts)

    def pack(self) -> None:
        source, strip, home = self.source, self.strip, self.home
        parts, self.parts = self.parts or source.parts(strip), None
        place = source.place_of(strip, self.layout)
        block = home[strip.expert] if isinstance(home, ExpertArena) else home.only_copy(strip.expert)
        if block is not None:
            source.pack_tiles(strip, parts, block[place], self.layout)
            return
        assert isinstance(home, NodePlacement)
        tiles = aligned(place.stop - place.start)
        source.pack_tiles(strip, parts, tiles, self.layout)
        home.write(strip.expert, place.start, tiles)


def num_bytes_of(homes: Homes) -> int:
    """Of all experts, with their copies."""
    return sum(home.num_bytes if isinstance(home, ExpertArena) else int(home.bytes_of_node.sum()) for home in homes)


def routed_of(
    homes: Homes, layout: ExpertLayout, isa: str | None, activation: Activation, pool: Pool
) -> list[RoutedExperts]:
    """The routed experts of each layer; each owns its arena or placement, and all share one scratch."""
    choice = choose_isa(isa)
    routed: list[RoutedExperts] = []
    for home in homes:
        placement = home if isinstance(home, NodePlacement) else None
        routed.append(RoutedExperts(layout, home.addresses, choice, activation, pool, owner=home, placement=placement))
        routed[-1].share_scratch(routed[0])  # layers run one after the other: one scratch serves all
    return routed


def unreserved_bytes_of(homes: Homes) -> int:
    """Of what these homes hold, the bytes that are not on reserved huge pages."""
    total = 0
    for home in homes:
        if isinstance(home, ExpertArena):
            total += 0 if is_reserved(home.huge_pages) else home.num_bytes
        else:
            total += sum(len(each.memory) for each in home.memory_of_copy.values() if not is_reserved(each.pages))
    return total


def check_memory(num_bytes: int) -> None:
    """MemoryError before the first page is touched; ``num_bytes`` of pages that are not reserved."""
    available = free_memory_bytes()
    if num_bytes > available:
        raise MemoryError(
            f"experts: expected {num_bytes / 2**30:.1f} GiB of free memory, got {available / 2**30:.1f} GiB; "
            "free memory (or raise the limit of the container), load a smaller model, or leave out activation='f32'"
        )
