"""Decode: the predicted rate of one step of B tokens, from what it reads and computes.  Floor 2.

One stream: the fit of the points nearest to the model (`fit_mode`), its t0 scaled by the layers.

Several streams: no fit, two published batches to look at. A batch multiplies the bytes, so that it matters how the two
terms are divided; eta and t0 are those of the experiment that varies the bytes alone, and computing for the tokens
beyond the first is added (`computing`). The low end has the spread of one stream, widened by the worst published batch;
the high end is the other division of the terms, without computing. No coverage is claimed.

It does not know scheduling, nor GPUs that are slower than the CPU beside them.
"""

from __future__ import annotations

from dataclasses import replace

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.units import GB
from moelab.sizing.computing import core_gflop_per_s, cpu_params, separate_terms
from moelab.sizing.outside_points import BATCH_POINTS, OTHER_FAMILIES
from moelab.sizing.places import Places
from moelab.sizing.reads import StepReads
from moelab.sizing.speed import Prediction, speed_fit
from moelab.sizing.validation_points import VALIDATION_POINTS

POINTS_FAMILY = "deepseek_v3"
POINTS_LAYERS = {point.num_layers for point in VALIDATION_POINTS}


def fit_mode(spec: ModelSpec, places_mode: str) -> str:
    """Which fit is nearest: the points' own families have latent attention, the others grouped."""
    if places_mode == "hybrid" and spec.kv_lora_rank is None:
        return OTHER_FAMILIES
    return "cpu" if places_mode == "cpu" else "hybrid"


def is_of_the_points(spec: ModelSpec, places_mode: str) -> bool:
    """Do published points of this kind of model exist for this mode."""
    if fit_mode(spec, places_mode) == OTHER_FAMILIES:
        return True
    return spec.family == POINTS_FAMILY and spec.num_hidden_layers in POINTS_LAYERS


def measured_eta(machine: Machine, expert_format: str) -> tuple[float, str] | None:
    """(share of the read rate that this machine's own kernels reach, which one); `None` for a preset.

    Of the kernels measured the one of the experts' format, else the slowest; 1 where none was measured: a ceiling.
    """
    if machine.source not in ("probe", "calibration"):
        return None
    kernels = machine.kernel_efficiency
    fitting = {name: share for name, share in kernels.items() if name.split("/")[1:2] == [expert_format]}
    if fitting:
        name = max(fitting, key=lambda key: fitting[key])
        return fitting[name], name
    if kernels:
        name = min(kernels, key=lambda key: kernels[key])
        return kernels[name], f"{name}, the slowest measured: none of {expert_format}"
    return 1.0, "no kernel measured, 1 assumed"


def predict_decode(
    spec: ModelSpec, machine: Machine, places: Places, reads: StepReads, *, expert_bytes: float, expert_format: str,
    bandwidth_gb_per_s: float, uneven: float, ceiling_tok_per_s: float | None,
) -> Prediction:  # fmt: skip
    """Rate of decode on `places`. `uneven`: busiest node over the mean; `fast` tiers without a rate cost no time."""
    fit = speed_fit(fit_mode(spec, places.mode))
    own = measured_eta(machine, expert_format)
    eta = own[0] if own else None
    rates = [tier.read_gb_per_s for tier in machine.fast_tiers]
    fast = sum(rate or 0.0 for rate in rates) if rates and all(rates) else None
    beside = reads.always_bytes + reads.cache_bytes if places.mode == "cpu" else 0
    cache_s = reads.cache_bytes / (fast * GB) if fast and places.mode == "hybrid" else 0.0
    gpu_expert_s = reads.fast_expert_bytes / (fast * GB) if fast and places.mode == "hybrid" else 0.0
    limit = float("inf") if ceiling_tok_per_s is None else ceiling_tok_per_s
    layers = spec.num_hidden_layers
    read = fit.predict(
        reads.home_bytes * uneven + beside, bandwidth_gb_per_s, batch=reads.batch, eta=eta, other_s=cache_s,
        at_least_s=gpu_expert_s, ceiling_tok_per_s=limit, num_layers=layers,
    )  # fmt: skip
    if reads.batch == 1:
        if not is_of_the_points(spec, places.mode):
            return _unlike(read, places.mode, limit)
        # No point has unified memory, and none divides by a bandwidth that was measured with this machine's kernels.
        return replace(read, coverage=None) if machine.unified_memory or own else read
    one_token_bytes = spec.num_experts_per_tok * spec.num_moe_layers * expert_bytes
    alone = fit.predict(
        one_token_bytes * uneven + beside, bandwidth_gb_per_s, eta=eta, other_s=cache_s, ceiling_tok_per_s=limit,
        num_layers=layers,
    )  # fmt: skip
    divided_eta, fixed_s = separate_terms(fit.mode, layers)
    share = eta or divided_eta
    per_expert = reads.batch * spec.num_experts_per_tok / reads.distinct
    at_home = min(1.0, reads.reads_per_layer_step / reads.distinct)
    rate = core_gflop_per_s(machine.matrix_unit or "vector", per_expert) * max(machine.num_cores, 1)
    extra_s = 2e-9 * cpu_params(spec, places.mode, at_home) * (reads.batch - 1) / rate * uneven
    read_s = (reads.home_bytes * uneven + beside) / (share * bandwidth_gb_per_s * GB)
    together = reads.batch / (max(read_s + extra_s, gpu_expert_s) + fixed_s + cache_s)
    # Several streams are no slower together than one alone: an engine may serve them one after another.
    predicted = min(max(together, alone.tok_per_s), limit)
    worst = min(1.0, *(point.tok_per_s / point.model_tok_per_s for point in BATCH_POINTS))
    low = min(max(alone.interval_tok_per_s[0], together * float(fit.ratios.min()) * worst), predicted)
    high = max(read.interval_tok_per_s[1], predicted)
    return replace(read, tok_per_s=predicted, interval_tok_per_s=(low, high), coverage=None, eta=share, t0_s=fixed_s)


def _unlike(read: Prediction, places_mode: str, limit: float) -> Prediction:
    """A model that no point is like: no coverage; by the CPU alone, where t0 is another model's, up to the ceiling."""
    low, high = read.interval_tok_per_s
    if places_mode == "cpu":
        high = max(high, limit if limit < float("inf") else high)
    return replace(read, interval_tok_per_s=(low, high), coverage=None)
