"""Sizing: the result of `size`, as fields for programs and as rows for people.  Floor 2.

Every number carries its unit in its name; a prediction is never shown without its errors, nor a ceiling without being
called one. It computes nothing that `size` has not placed, read or predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.summary import summary_html
from moelab.domain.units import format_gb, format_params
from moelab.sizing.losses import other_fits
from moelab.sizing.places import Places
from moelab.sizing.prefill import Prefill
from moelab.sizing.reads import StepReads
from moelab.sizing.recipes import Recipe, weight_bytes_of_recipe
from moelab.sizing.speed import LOSSES, Prediction


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
    prediction: Prediction | None
    ceiling_tok_per_s: float | None
    prefill: Prefill
    caveats: tuple[str, ...]

    def other_losses(self) -> dict[str, dict[str, float]]:
        """Loss -> tok/s of one stream here by that loss, its leave-one-out median and mean error; {} if not predicted.

        The first loss is the one that predicts (`losses`); a machine's own eta is not in it.
        """
        if self.prediction is None or self.batch > 1:
            return {}
        num_bytes = self.reads.home_bytes * self.imbalance
        if self.places.mode == "cpu":
            num_bytes += self.reads.always_bytes + self.reads.cache_bytes
        rows = {}
        for loss, fit in other_fits(self.prediction.mode).items():
            seconds = fit.token_s(num_bytes, self.bandwidth_gb_per_s, self.spec.num_hidden_layers)
            rows[loss] = {
                "tok_per_s": min(1 / seconds, self.ceiling_tok_per_s or float("inf")),
                "leave_one_out_median_error": fit.median_error, "leave_one_out_mean_error": fit.mean_error,
            }  # fmt: skip
        return rows

    def to_dict(self) -> dict[str, Any]:
        """What `moelab size --json` prints: plain values, units in the names."""
        spec, predicted, need = self.spec, self.prediction, self.places.need
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
            "fit": predicted.mode if predicted else None,
            "fit_points": predicted.num_points if predicted else None,
            "by_other_losses": {loss: row for loss, row in self.other_losses().items() if loss != LOSSES[0]},
            "eta": predicted.eta if predicted else None,
            "t0_ms": 1e3 * predicted.t0_s if predicted else None,
            "ceiling_tok_per_s": self.ceiling_tok_per_s,
            "prefill_tokens": self.prefill.prompt,
            "predicted_prefill_tok_per_s": self.prefill.tok_per_s,
            "predicted_prefill_tok_per_s_interval": None
            if self.prefill.interval_tok_per_s is None
            else list(self.prefill.interval_tok_per_s),
            "prefill_leave_one_out_median_error": self.prefill.median_error,
            "prefill_leave_one_out_mean_error": self.prefill.mean_error,
            "prefill_unit": self.prefill.unit,
            "prefill_ceiling_tok_per_s": self.prefill.ceiling_tok_per_s,
            "prefill_link_ceiling_tok_per_s": self.prefill.link_ceiling_tok_per_s,
            "caveats": list(self.caveats),
        }

    def summary(self) -> dict[str, Any]:
        """The same for people, fewer and rounded."""
        need, predicted, places = self.places.need, self.prediction, self.places
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
            rows["its error"] = self._error(predicted)
            others = {loss: row for loss, row in self.other_losses().items() if loss != LOSSES[0]}
            if others:
                rows["other losses"] = "; ".join(
                    f"{loss} {row['tok_per_s']:.1f} ({row['leave_one_out_median_error']:.1%}, "
                    f"{row['leave_one_out_mean_error']:.1%})"
                    for loss, row in others.items()
                )
        if self.ceiling_tok_per_s:
            rows["ceiling tok/s"] = f"{self.ceiling_tok_per_s:.1f} (bytes over bandwidth, never reached)"
        rows |= self._prefill_rows()
        if self.batch > 1:
            rows["distinct experts"] = (
                f"{self.reads.distinct:.1f} of {self.spec.n_routed_experts}: {self.reads.union_from}"
            )
        rows["caveats"] = "; ".join(self.caveats) or "none"
        return rows

    def _error(self, predicted: Prediction) -> str:
        """Median and mean of what the fit has not seen, and what the interval is worth."""
        if predicted.coverage is not None:
            worth = f"interval holds a new one with {predicted.coverage:.0%}"
        elif self.batch > 1:
            worth = "none is a batch: the spread of one stream, down by the worst published batch, up to reads alone"
        else:
            worth = "none is of this kind: nobody knows how often the interval holds"
        return (
            f"leave-one-out median {predicted.median_error:.1%}, mean {predicted.mean_error:.1%} on "
            f"{predicted.num_points} published points ({predicted.mode}); {worth}"
        )

    def _prefill_rows(self) -> dict[str, str]:
        one = self.prefill
        rows = {}
        if one.told:
            rows["predicted prefill"] = (
                f"{one.told} tok/s on the CPU for {one.prompt:,} tokens, "
                f"{one.unit} units; leave-one-out median {one.median_error:.0%}, mean {one.mean_error:.0%} on "
                f"{one.num_points} published points; attention not counted"
            )
        link = one.link_ceiling_tok_per_s
        rows["prefill ceiling"] = f"{one.ceiling_tok_per_s:,.0f} tok/s from RAM" + (
            f", {link:,.0f} by copies over the links (published ways reach 0.1 to 0.3 of it)" if link else ""
        )
        return rows

    def _bandwidth_from(self) -> str:
        told = "peak of the channels; a preset's cores and memory sizes are assumed"
        return told if self.machine.source == "preset" else self.machine.source

    def __str__(self) -> str:
        title = f"{self.spec.name or self.spec.label} on {self.machine.name}"
        return title + "\n" + "\n".join(f"  {name}: {value}" for name, value in self.summary().items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return summary_html(f"{self.spec.name or self.spec.label} on {self.machine.name}", self.summary())
