"""size(model, machine): parameters, bytes, whether it fits, and how fast, with what is known and what is not.  Floor 2.

Ties the room together: recipes, places, reads, the fitted speed. A ceiling is bandwidth over bytes and is called one;
a prediction is the fit's and carries its interval and leave-one-out errors. Where nothing published was like the
case (everything on GPUs, experts streaming from disk) there is a ceiling and no prediction.

It does not simulate: hits of a fast tier come in as reads per layer-step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.summary import summary_html
from moelab.domain.units import GB, format_gb, format_params
from moelab.sizing.places import (
    SYSTEM_BYTES_PER_GPU,
    SYSTEM_BYTES_PER_NODE,
    Places,
    imbalance,
    need_of,
    place,
)
from moelab.sizing.prefill import PrefillCeiling, bandwidth_gb_per_s, prefill_ceiling
from moelab.sizing.reads import StepReads, step_reads
from moelab.sizing.recipes import Recipe, recipe, weight_bytes_of_recipe
from moelab.sizing.speed import Prediction, speed_fit

_FAMILY_OF_POINTS = "deepseek_v3"


@dataclass(frozen=True)
class Sizing:
    """One model on one machine at one recipe, context and batch."""

    spec: ModelSpec
    machine: Machine
    recipe: Recipe
    context: int
    batch: int
    kv_format: str
    places: Places
    reads: StepReads
    bandwidth_gb_per_s: float
    imbalance: float
    predicted: Prediction | None
    ceiling_tok_per_s: float | None
    prefill: PrefillCeiling
    caveats: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What `moelab size --json` prints: plain values, units in the names."""
        spec, predicted, need = self.spec, self.predicted, self.places.need
        return {
            "model": spec.name or spec.label,
            "machine": self.machine.name,
            "format": self.recipe.name,
            "format_is_exact": self.recipe.exact,
            "context": self.context,
            "batch": self.batch,
            "total_params": spec.total_params,
            "active_params": spec.active_params,
            "params_of_part": spec.params_of_part,
            "weight_bytes": weight_bytes_of_recipe(spec) | {self.recipe.name: self.recipe.weight_bytes(spec)},
            "bytes_of_part": self.recipe.bytes_of_part(spec),
            "kv_bytes_per_token": spec.kv_cache_bytes(1, format=self.kv_format),
            "kv_bytes": need.cache_bytes,
            "kv_expanded_bytes": spec.kv_cache_bytes(self.context, self.batch, self.kv_format, expanded=True),
            "mode": self.places.mode,
            "layout": self.places.layout,
            "fits": self.places.fits,
            "lacks": list(self.places.lacks),
            "always_bytes": need.always_bytes,
            "routed_bytes": need.routed_bytes,
            "routed_fast_bytes": self.places.routed_fast_bytes,
            "may_stream_bytes": need.routed_bytes,
            "streamed_bytes": self.places.streamed_bytes,
            "node_bytes": list(self.places.node_bytes),
            "node_room_bytes": list(self.places.node_room_bytes),
            "fast_bytes": self.places.fast_bytes,
            "fast_room_bytes": self.places.fast_room_bytes,
            "distinct_experts": self.reads.distinct,
            "distinct_from": self.reads.union_from,
            "reads_per_layer_step": self.reads.reads_per_layer_step,
            "hits_from": self.reads.hits_from,
            "read_bytes_per_token": self.reads.home_bytes / self.batch,
            "bandwidth_gb_per_s": self.bandwidth_gb_per_s,
            "bandwidth_from": self.machine.source,
            "imbalance": self.imbalance,
            "predicted_tok_per_s": predicted.tok_per_s if predicted else None,
            "predicted_tok_per_s_interval": list(predicted.interval_tok_per_s) if predicted else None,
            "predicted_ms_per_step": 1e3 * self.batch / predicted.tok_per_s if predicted else None,
            "interval_coverage": predicted.coverage if predicted else None,
            "leave_one_out_median_error": predicted.median_error if predicted else None,
            "leave_one_out_mean_error": predicted.mean_error if predicted else None,
            "fit_points": predicted.num_points if predicted else None,
            "eta": predicted.eta if predicted else None,
            "t0_ms": 1e3 * predicted.t0_s if predicted else None,
            "ceiling_tok_per_s": self.ceiling_tok_per_s,
            "prefill_ceiling_tok_per_s": self.prefill.cpu_tok_per_s,
            "prefill_link_ceiling_tok_per_s": self.prefill.link_tok_per_s,
            "caveats": list(self.caveats),
        }

    def summary(self) -> dict[str, Any]:
        """The same for people, fewer and rounded."""
        need, predicted, places = self.places.need, self.predicted, self.places
        rows: dict[str, Any] = {
            "parameters": f"{format_params(self.spec.total_params)} total, "
            f"{format_params(self.spec.active_params)} a token",
            "weights": f"{format_gb(self.recipe.weight_bytes(self.spec))} in {self.recipe.name}"
            + ("" if self.recipe.exact else " (nominal bits)"),
            "every token reads": f"{format_gb(need.always_bytes)}, of the experts "
            f"{format_gb(self.reads.home_bytes / self.batch)} at home",
            "cache": f"{self.spec.kv_cache_bytes(1, format=self.kv_format):,} B a token, "
            f"{format_gb(need.cache_bytes, 2)} at {self.context:,} x {self.batch}",
            "fits": "yes" if places.fits else "NO: " + "; ".join(places.lacks),
            "nodes": ", ".join(
                f"{format_gb(used)} of {format_gb(room)}"
                for used, room in zip(places.node_bytes, places.node_room_bytes, strict=True)
            ),
        }
        if places.fast_room_bytes:
            rows["GPUs"] = f"{format_gb(places.fast_bytes)} of {format_gb(places.fast_room_bytes)}"
            if places.routed_fast_bytes:
                rows["GPUs"] += f", {format_gb(places.routed_fast_bytes)} of it experts"
        rows["bandwidth"] = f"{self.bandwidth_gb_per_s:,.0f} GB/s ({self._bandwidth_from()})"
        if predicted:
            low, high = predicted.interval_tok_per_s
            rows["predicted tok/s"] = f"{predicted.tok_per_s:.1f} ({low:.1f} to {high:.1f})"
            rows["its error"] = (
                f"leave-one-out median {predicted.median_error:.1%}, mean {predicted.mean_error:.1%} "
                f"on {predicted.num_points} published points; interval holds a new one with {predicted.coverage:.0%}"
            )
        if self.ceiling_tok_per_s:
            rows["ceiling tok/s"] = f"{self.ceiling_tok_per_s:.1f} (bytes over bandwidth, never reached)"
        if self.batch > 1:
            rows["distinct experts"] = (
                f"{self.reads.distinct:.1f} of {self.spec.n_routed_experts}: {self.reads.union_from}"
            )
        rows["caveats"] = "; ".join(self.caveats) or "none"
        return rows

    def _bandwidth_from(self) -> str:
        return "peak of the channels" if self.machine.source == "preset" else self.machine.source

    def __str__(self) -> str:
        title = f"{self.spec.name or self.spec.label} on {self.machine.name}"
        return title + "\n" + "\n".join(f"  {name}: {value}" for name, value in self.summary().items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return summary_html(f"{self.spec.name or self.spec.label} on {self.machine.name}", self.summary())


def size(
    model: ModelSpec | str,
    machine: Machine | str,
    *,
    format: str | Recipe = "native",
    context: int = 8192,
    batch: int = 1,
    kv_format: str = "bf16",
    layout: str = "split",
    routed_fast_bytes: int | None = None,
    distinct: float | None = None,
    distinct_from: str = "measured",
    reads_per_layer_step: float | None = None,
    hits_from: str = "given reads per layer-step",
    disk_gb_per_s: float | None = None,
    system_bytes_per_node: int = SYSTEM_BYTES_PER_NODE,
    system_bytes_per_gpu: int = SYSTEM_BYTES_PER_GPU,
) -> Sizing:
    """Size `model` (a spec or a preset's name) on `machine` (a document or a preset's name).

    `format`: a recipe or its name. `layout`: how experts lie over several nodes (`places`). `routed_fast_bytes`:
    experts on the GPUs, else only what RAM lacks. `distinct`, `reads_per_layer_step`: see `reads.step_reads`.
    `disk_gb_per_s`: rate at which experts that fit nowhere would stream, for a ceiling. ValueError by name for
    whatever is unknown, contradictory or not counted exactly.
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
        union_from=distinct_from, reads_per_layer_step=reads_per_layer_step, hits_from=hits_from,
    )  # fmt: skip
    bandwidth = bandwidth_gb_per_s(machine)
    uneven = 1.0
    if layout == "whole" and len(machine.nodes) > 1 and places.mode != "fast":
        uneven = imbalance(spec.n_routed_experts, max(1, round(reads.distinct)), len(machine.nodes))
    ceiling = _ceiling(places, reads, bandwidth, _fast_gb_per_s(machine), disk_gb_per_s)
    predicted = None
    if places.fits and places.mode != "fast":
        predicted = _predict(machine, places, reads, bandwidth, uneven, ceiling)
    return Sizing(
        spec=spec, machine=machine, recipe=chosen, context=context, batch=batch, kv_format=kv_format, places=places,
        reads=reads, bandwidth_gb_per_s=bandwidth, imbalance=uneven, predicted=predicted, ceiling_tok_per_s=ceiling,
        prefill=prefill_ceiling(spec, chosen, machine, max(context, 1)),
        caveats=tuple(_caveats(spec, machine, chosen, places, reads, context, uneven)),
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


def _predict(
    machine: Machine, places: Places, reads: StepReads, bandwidth: float, uneven: float, ceiling: float | None
) -> Prediction:
    fit = speed_fit(places.mode)
    measured = machine.source in ("probe", "calibration")
    eta = next(iter(machine.kernel_efficiency.values()), 1.0) if measured else None
    fast = _fast_gb_per_s(machine)
    num_bytes, other_s, at_least_s = reads.home_bytes * uneven, 0.0, 0.0
    if places.mode == "cpu":
        num_bytes += reads.always_bytes + reads.cache_bytes
    elif fast:
        other_s = reads.cache_bytes / (fast * GB)
        at_least_s = reads.fast_expert_bytes / (fast * GB)
    return fit.predict(
        num_bytes, bandwidth, batch=reads.batch, eta=eta, other_s=other_s, at_least_s=at_least_s,
        ceiling_tok_per_s=float("inf") if ceiling is None else ceiling,
    )  # fmt: skip


def _caveats(
    spec: ModelSpec, machine: Machine, chosen: Recipe, places: Places, reads: StepReads, context: int, uneven: float
) -> list[str]:
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
    if spec.family != _FAMILY_OF_POINTS:
        told.append("the points are all DeepSeek-V3 and Kimi K2; t0 is theirs")
    if machine.unified_memory:
        told.append("unified memory: no such point, taken as CPU-only")
    if machine.source in ("probe", "calibration"):
        told.append("bandwidth and eta measured on this machine, t0 of published engines")
    if reads.batch > 1:
        told.append(
            f"batch {reads.batch}: the points are all batch 1; computing not counted, unions: {reads.union_from}"
        )
    if context > 2048:
        told.append(
            "the points have contexts of about 1K; a longer cache counts as its bytes, one engine lost more (14 to 10 "
            "tok/s at 10K)"
        )
    if reads.fast_expert_bytes:
        told.append(f"experts on the GPUs: {reads.hits_from}")
    if uneven > 1:
        told.append(f"whole experts on nodes: the busiest reads {uneven:.2f} times the mean under uniform routing")
    worst = min(machine.published_read_fractions.items(), key=lambda item: item[1], default=None)
    if worst is not None and worst[1] < 0.4:
        told.append(f"others measured {worst[1]:.0%} of the peak: {worst[0]}")
    return told
