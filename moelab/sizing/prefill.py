"""Prefill: a predicted rate of reading a prompt on the CPU, and ceilings.  Floor 2.

Prefill is not decode: a chunk of C tokens reads nearly every expert once and computes C times as much. Where the CPU
computes the experts the rate is predicted: reading + computing (`computing`), with the leave-one-out errors of the
published rates. Where experts are copied over the link and the GPU computes them there is a ceiling of the
link alone, and published rates beside it (`prefill_points.OVER_LINK`): too few for a fit, 0.1 to 0.3 of that ceiling.

Attention is not counted: at long prompts rates fall below. Ceilings count bytes only.
"""

from __future__ import annotations

from dataclasses import dataclass

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.units import GB
from moelab.sizing.computing import compute_fit, core_gflop_per_s, cpu_params, separate_terms
from moelab.sizing.places import Places
from moelab.sizing.reads import uniform_union
from moelab.sizing.recipes import Recipe
from moelab.sizing.speed import MODES

CHUNK = 4096


@dataclass(frozen=True)
class Prefill:
    """Rates for a prompt of `prompt` tokens in chunks of `chunk`; `None` where the machine has no such way, or the
    model does not fit, or memory is unified: there the GPU computes, and no page gives its rate. `ceiling` is bytes
    over bandwidth, `link_ceiling` the copies of all experts to the GPUs."""

    prompt: int
    chunk: int
    read_bytes: float
    ceiling_tok_per_s: float
    link_ceiling_tok_per_s: float | None
    unit: str
    tok_per_s: float | None
    interval_tok_per_s: tuple[float, float] | None
    median_error: float
    mean_error: float
    num_points: int

    @property
    def told(self) -> str:
        """The rate and its interval, empty where nothing is predicted."""
        if self.tok_per_s is None or self.interval_tok_per_s is None:
            return ""
        low, high = self.interval_tok_per_s
        return f"{self.tok_per_s:,.0f} ({low:,.0f} to {high:,.0f})"


def prefill(
    spec: ModelSpec, recipe: Recipe, machine: Machine, places: Places, prompt: int, *, fit_mode: str = "hybrid",
    chunk: int = CHUNK,
) -> Prefill:  # fmt: skip
    """Rates of a prompt. ValueError for sizes below 1 or a node without a read rate.

    Experts that lie on GPUs (`places.fast_share`) are computed there, beside the CPU and not counted.
    """
    if prompt < 1 or chunk < 1:
        raise ValueError(f"prompt {prompt} in chunks of {chunk}, expected both at least 1")
    if fit_mode not in MODES:
        raise ValueError(f"fit_mode is {fit_mode!r}, expected one of {', '.join(MODES)}")
    experts, top_k, num_layers = spec.n_routed_experts, spec.num_experts_per_tok, spec.num_moe_layers
    whole, rest = divmod(prompt, chunk)
    sizes = [(whole, chunk)] * bool(whole) + [(1, rest)] * bool(rest)
    expert_bytes = recipe.expert_bytes(spec)
    at_home = 1 - places.fast_share
    bandwidth = bandwidth_gb_per_s(machine)
    eta, fixed_s = separate_terms(fit_mode, spec.num_hidden_layers)
    unit = machine.matrix_unit or "vector"
    params = cpu_params(spec, places.mode, at_home)
    read_bytes = seconds = 0.0
    for num, tokens in sizes:
        distinct = uniform_union(experts, top_k, tokens)
        home = distinct * at_home * num_layers * expert_bytes
        home += places.need.always_bytes if places.mode == "cpu" else 0
        rate = core_gflop_per_s(unit, tokens * top_k / distinct) * machine.num_cores
        read_bytes += num * home
        seconds += num * (home / (eta * bandwidth * GB) + fixed_s + 2e-9 * params * tokens / rate)
    links = [tier.link_gb_per_s for tier in machine.fast_tiers if tier.link_gb_per_s and not machine.unified_memory]
    copied = sum(num * uniform_union(experts, top_k, tokens) for num, tokens in sizes) * num_layers * expert_bytes
    ceiling = prompt * bandwidth * GB / read_bytes if read_bytes else float("inf")
    fit = compute_fit(unit)
    predicted = interval = None
    if places.fits and places.mode != "fast" and machine.num_cores and not machine.unified_memory:
        predicted = min(prompt / seconds, ceiling)
        low, high = (min(predicted * float(bound), ceiling) for bound in (fit.ratios.min(), fit.ratios.max()))
        interval = (low, high)
    return Prefill(
        prompt=prompt, chunk=chunk, read_bytes=read_bytes, ceiling_tok_per_s=ceiling,
        link_ceiling_tok_per_s=prompt * min(sum(links), bandwidth) * GB / copied if links and copied else None,
        unit=unit, tok_per_s=predicted, interval_tok_per_s=interval, median_error=fit.median_error,
        mean_error=fit.mean_error, num_points=len(fit.points),
    )  # fmt: skip


def bandwidth_gb_per_s(machine: Machine) -> float:
    """GB/s of all nodes together, each at its best thread count. ValueError names a node without a rate."""
    total = 0.0
    for node in machine.nodes:
        if node.best_read_gb_per_s is None:
            raise ValueError(f"{node.name} of machine {machine.name} has no read rate: probe or calibrate it first")
        total += node.best_read_gb_per_s
    return total
