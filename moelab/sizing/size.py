"""size(model, machine): parameters, bytes, whether it fits, and how fast, with what is known and what is not.  Floor 2.

Ties the room together: recipes, places, reads, the fitted speed. A ceiling is bandwidth over bytes and is called one;
a prediction is a fit's and carries its interval and leave-one-out errors. Where nothing published was like the
case (everything on GPUs, experts streaming from disk) there is a ceiling and no prediction.

It does not simulate: hits of a fast tier come in as reads per layer-step.
"""

from __future__ import annotations

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.units import GB
from moelab.sizing.decode import POINTS_FAMILY, fit_mode, is_of_the_points, measured_eta, predict_decode
from moelab.sizing.outside_points import BATCH_POINTS, OTHER_FAMILIES
from moelab.sizing.places import (
    SYSTEM_BYTES_PER_GPU,
    SYSTEM_BYTES_PER_NODE,
    Places,
    imbalance,
    need_of,
    place,
)
from moelab.sizing.prefill import bandwidth_gb_per_s, prefill
from moelab.sizing.reads import StepReads, step_reads
from moelab.sizing.recipes import Recipe, recipe
from moelab.sizing.sizing import Sizing
from moelab.sizing.speed import speed_fit

DEFAULT_CONTEXT = 8192


def size(
    model: ModelSpec | str,
    machine: Machine | str,
    *,
    format: str | Recipe = "native",
    context: int = DEFAULT_CONTEXT,
    batch: int = 1,
    kv_format: str = "bf16",
    layout: str = "split",
    routed_fast_bytes: int | None = None,
    distinct: float | None = None,
    distinct_from: str = "measured",
    reads_per_layer_step: float | None = None,
    hits_per_layer_step: float | None = None,
    hits_from: str = "given reads per layer-step",
    disk_gb_per_s: float | None = None,
    system_bytes_per_node: int = SYSTEM_BYTES_PER_NODE,
    system_bytes_per_gpu: int = SYSTEM_BYTES_PER_GPU,
) -> Sizing:
    """Size `model` (a spec or a preset's name) on `machine` (a document or a preset's name).

    `format`: a recipe or its name. `layout`: how experts lie over several nodes (`places`). `routed_fast_bytes`:
    experts on the GPUs, else only what RAM lacks. `distinct`, `reads_per_layer_step`, `hits_per_layer_step`: see
    `reads.step_reads`. `disk_gb_per_s`: rate at which experts that fit nowhere would stream, for a ceiling.
    ValueError by name for whatever is unknown, contradictory or not counted exactly.
    """
    spec = ModelSpec.preset(model) if isinstance(model, str) else model
    machine = Machine.preset(machine) if isinstance(machine, str) else machine
    chosen = recipe(format) if isinstance(format, str) else format
    places = place(
        need_of(spec, chosen, context, batch, kv_format), machine, layout=layout, routed_fast_bytes=routed_fast_bytes,
        system_bytes_per_node=system_bytes_per_node, system_bytes_per_gpu=system_bytes_per_gpu,
    )  # fmt: skip
    reads = step_reads(
        spec, chosen, places, context=context, batch=batch, kv_format=kv_format, distinct=distinct,
        union_from=distinct_from, reads_per_layer_step=reads_per_layer_step, hits_per_layer_step=hits_per_layer_step,
        hits_from=hits_from,
    )  # fmt: skip
    bandwidth = bandwidth_gb_per_s(machine)
    uneven = 1.0
    if layout == "whole" and len(machine.nodes) > 1 and places.mode != "fast":
        uneven = imbalance(spec.n_routed_experts, max(1, round(reads.distinct)), len(machine.nodes))
    ceiling = _ceiling(places, reads, bandwidth, _fast_gb_per_s(machine), disk_gb_per_s)
    predicted = None
    expert_format = spec.native_formats["routed_experts"] if chosen.name == "native" else chosen.name
    if places.fits and places.mode != "fast":
        predicted = predict_decode(
            spec, machine, places, reads, expert_bytes=chosen.expert_bytes(spec), expert_format=expert_format,
            bandwidth_gb_per_s=bandwidth, uneven=uneven, ceiling_tok_per_s=ceiling,
        )  # fmt: skip
    return Sizing(
        spec=spec, machine=machine, recipe=chosen, context=context, batch=batch, kv_format=kv_format, places=places,
        reads=reads, bandwidth_gb_per_s=bandwidth, imbalance=uneven, prediction=predicted, ceiling_tok_per_s=ceiling,
        prefill=prefill(
            spec, chosen, machine, places, context or DEFAULT_CONTEXT, fit_mode=fit_mode(spec, places.mode)
        ),
        caveats=tuple(_caveats(spec, machine, chosen, places, reads, context, uneven, expert_format, bandwidth)),
    )  # fmt: skip


def _fast_gb_per_s(machine: Machine) -> float | None:
    """GB/s of all GPUs together; `None` without any, or where one has no rate."""
    rates = [tier.read_gb_per_s for tier in machine.fast_tiers]
    return sum(rate or 0.0 for rate in rates) if rates and all(rates) else None


def _ceiling(
    places: Places, reads: StepReads, bandwidth: float, fast_gb_per_s: float | None, disk_gb_per_s: float | None
) -> float | None:
    """Tokens a second if every byte came at full bandwidth and GPU, CPU and disk overlapped perfectly."""
    beside = reads.always_bytes + reads.cache_bytes
    if places.mode == "cpu":
        home, fast = reads.home_bytes + beside, 0.0
    else:
        home, fast = reads.home_bytes, beside + reads.fast_expert_bytes
    times = [home / (bandwidth * GB)]
    if fast and fast_gb_per_s:
        times.append(fast / (fast_gb_per_s * GB))
    if places.streamed_bytes:
        if disk_gb_per_s is None:
            return None
        if not disk_gb_per_s > 0:
            raise ValueError(f"disk rate is {disk_gb_per_s} GB/s, expected more than 0")
        routed = reads.home_bytes + reads.fast_expert_bytes
        times.append(places.streamed_share * routed / (disk_gb_per_s * GB))
    elif places.lacks:
        return None
    longest = max(times)
    return reads.batch / longest if longest > 0 else None


def _caveats(
    spec: ModelSpec, machine: Machine, chosen: Recipe, places: Places, reads: StepReads, context: int, uneven: float,
    expert_format: str, bandwidth: float,
) -> list[str]:  # fmt: skip
    """What the numbers rest on and the fit has not seen."""
    told = []
    if not chosen.exact:
        told.append(f"{chosen.name}: bytes of the experts from published bits per weight")
    if spec.max_position_embeddings and context > spec.max_position_embeddings:
        told.append(f"context is longer than the model's own {spec.max_position_embeddings:,}")
    if places.mode == "fast":
        return [*told, "everything on GPUs: no such point in the fit, a ceiling only"]
    if not places.fits:
        return [*told, "does not fit: no prediction"]
    if fit_mode(spec, places.mode) == OTHER_FAMILIES:
        told.append("fitted on seven rates of MiniMax-M2, Qwen3-30B, gpt-oss-120b, GLM-4.5-Air, some with assumptions")
    elif not is_of_the_points(spec, places.mode):
        scaled = f"t0 is theirs, scaled to {spec.num_hidden_layers} layers"
        wide = "; the interval ends at the ceiling" if places.mode == "cpu" else ""
        told.append(f"no such point: the fit is of DeepSeek-V3 and Kimi K2 ({POINTS_FAMILY}); {scaled}{wide}")
    if fit_mode(spec, places.mode) == "hybrid" and reads.batch == 1:
        newer = speed_fit(OTHER_FAMILIES)
        seconds = newer.token_s(reads.home_bytes * uneven, bandwidth, spec.num_hidden_layers)
        told.append(
            f"the points are engines of 2025; the fit of newer ones, of other families, says {1 / seconds:.1f}; one "
            "of 2026 made 28 tok/s of DeepSeek-V3 int4, memory unknown (OSDI 26)"
        )
    if machine.unified_memory:
        told.append("unified memory: no such point, taken as CPU-only")
    own = measured_eta(machine, expert_format)
    if own is not None:
        told.append(f"bandwidth measured on this machine, eta {own[0]:.2f} ({own[1]}), t0 of published engines")
    if reads.batch > 1:
        published = ", ".join(
            f"{one.batch} streams of {one.model} {one.tok_per_s:.0f} (here {one.model_tok_per_s:.0f})"
            for one in BATCH_POINTS
        )
        told.append(f"batch {reads.batch}: not fitted; published tok/s {published}; unions: {reads.union_from}")
    if context > 2048:
        told.append(
            "the points have contexts of about 1K; a longer cache counts as its bytes, one engine lost more (14 to 10 "
            "tok/s at 10K)"
        )
    if reads.fast_expert_bytes > places.routed_fast_bytes * (1 + 1e-9):
        told.append(
            f"hits serve {reads.fast_expert_bytes / GB:.1f} GB a step from {places.routed_fast_bytes / GB:.1f} GB of "
            "experts on GPUs: their memory is not counted, say how many lie there"
        )
    if reads.fast_expert_bytes:
        told.append(f"experts on the GPUs: {reads.hits_from}")
    if uneven > 1:
        told.append(f"whole experts on nodes: the busiest reads {uneven:.2f} times the mean under uniform routing")
    worst = min(machine.published_read_fractions.items(), key=lambda item: item[1], default=None)
    if worst is not None and worst[1] < 0.4:
        told.append(f"others measured {worst[1]:.0%} of the peak: {worst[0]}")
    return told
