"""Routed experts into arenas: one per MoE layer, filled strip by strip by tasks for all workers.

Strips are taken in the order of the files, as the disk likes it. It knows formats and memory; it does not know names or
where the strips come from (`expert_tensors`). Floor 2.
"""

from __future__ import annotations

from functools import partial

from moelab.domain.model import ModelSpec
from moelab.engine.expert_tensors import ExpertTensors
from moelab.engine.strips import STRIP_BYTES
from moelab.kernels.arena import ExpertArena
from moelab.kernels.isa import choose_isa
from moelab.kernels.job import ACTIVATIONS, ACTIVATIONS_OF_FORMAT, Activation, WeightFormat
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts
from moelab.kernels.tasks import Tasks


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


def fill_arenas(experts: list[ExpertTensors], layout: ExpertLayout, tasks: Tasks) -> list[ExpertArena]:
    """Arenas of these layers, to be packed by `tasks`. MemoryError before the first page is touched."""
    check_memory(sum(layer.num_experts for layer in experts) * layout.expert_bytes)
    arenas = [ExpertArena(layout, layer.num_experts) for layer in experts]
    # Words of int4 that become float32 are widened by NumPy, which takes 16 times their bytes.
    widened = layout.weight_format == "float32" and experts[0].form == "packed"
    strip_bytes = STRIP_BYTES // 16 if widened else STRIP_BYTES
    strips = [(strip, layer) for layer in range(len(experts)) for strip in experts[layer].strips(strip_bytes)]
    strips.sort(key=lambda pair: pair[0].place)
    for strip, layer in strips:
        pack = partial(experts[layer].pack, strip, arenas[layer][strip.expert], layout)
        tasks.add(strip.num_bytes, pack, partial(experts[layer].ahead, strip))
    return arenas


def routed_of(
    arenas: list[ExpertArena], layout: ExpertLayout, isa: str | None, activation: Activation, pool: Pool
) -> list[RoutedExperts]:
    """The routed experts of each layer; each owns its arena, and all share one scratch."""
    choice = choose_isa(isa)
    routed: list[RoutedExperts] = []
    for arena in arenas:
        routed.append(RoutedExperts(layout, arena.addresses, choice, activation, pool, owner=arena))
        routed[-1].share_scratch(routed[0])  # layers run one after the other: one scratch serves all
    return routed


def check_memory(num_bytes: int) -> None:
    """MemoryError before the first page is touched."""
    import psutil

    available = psutil.virtual_memory().available
    if num_bytes > available:
        raise MemoryError(
            f"experts: expected {num_bytes / 2**30:.1f} GiB of free memory, got {available / 2**30:.1f} GiB; "
            "free memory, load a smaller model, or leave out activation='f32'"
        )
