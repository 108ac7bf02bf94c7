"""Computing: GFLOP/s of a core where a step has many tokens, from published prefill rates.  Floor 2.

    seconds = chunks x (bytes read once / (eta x bandwidth) + t0) + flops / (cores x rate of a core)

Reading and computing add up: the same cores do both, and at 37 streams the sum is nearer to what was published than the
larger of the two. Two rates, "vector" (AVX2, AVX-512) and "amx", each the geometric mean of what the points of its kind
imply, which is least squares of the logarithm. AMX takes 16 tokens at a time: with n < 16 tokens an expert n/16 of its
rate is used (Intel's manual: a tile has 16 rows), and where that is less than the vector rate the vector units work.

eta and t0 are those of the experiment that varies the bytes alone (`speed.ablation`), because here bytes are large and
what is fixed is small: the fit of all points trades one for the other. It does not know clocks, caches, attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from moelab.domain.model import ModelSpec
from moelab.domain.units import GB
from moelab.sizing.prefill_points import PREFILL_POINTS, PrefillPoint
from moelab.sizing.reads import uniform_union
from moelab.sizing.speed import REFERENCE_LAYERS, ablation, speed_fit

UNITS = ("vector", "amx")
TILE_TOKENS = 16


def separate_terms(mode: str, num_layers: int = REFERENCE_LAYERS) -> tuple[float, float]:
    """(eta, t0 in seconds): of the ablation, both sockets' mean, for "hybrid"; of the fit for the other modes."""
    if mode != "hybrid":
        return speed_fit(mode).eta, speed_fit(mode).fixed_s(num_layers)
    etas, fixed = zip(*ablation().values(), strict=True)
    return float(np.mean(etas)), float(np.mean(fixed)) * num_layers / REFERENCE_LAYERS


@dataclass(frozen=True, eq=False)
class ComputeFit:
    """The rate of one unit. `left_out` [n]: tok/s of each point by the rate of the others."""

    unit: str
    points: tuple[PrefillPoint, ...]
    gflop_per_core: float
    left_out: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """float64 [n]: published / predicted, leave-one-out."""
        return np.array([point.tok_per_s for point in self.points]) / self.left_out

    @property
    def median_error(self) -> float:
        return float(np.median(np.abs(1 / self.ratios - 1)))

    @property
    def mean_error(self) -> float:
        return float(np.mean(np.abs(1 / self.ratios - 1)))

    def __str__(self) -> str:
        return (
            f"{self.unit}: {self.gflop_per_core:.0f} GFLOP/s a core, {len(self.points)} points; leave-one-out error "
            f"median {self.median_error:.1%}, mean {self.mean_error:.1%}; published / predicted "
            f"{self.ratios.min():.2f} to {self.ratios.max():.2f}"
        )


def cpu_params(spec: ModelSpec, mode: str, cpu_share: float = 1.0, top_k: int | None = None) -> float:
    """Parameters that the CPU multiplies with one token: its share of the routed experts; by "cpu" the others too."""
    routed = spec.routed_active_params * (top_k or spec.num_experts_per_tok) / spec.num_experts_per_tok
    return routed * cpu_share + (spec.always_active_params if mode == "cpu" else 0)


def _reading_and_work(point: PrefillPoint) -> tuple[float, float]:
    """(seconds of a prompt that are not computing, GFLOP of one core)."""
    spec = ModelSpec.preset(point.model)
    eta, fixed_s = separate_terms(point.mode, spec.num_hidden_layers)
    share = point.cpu_share * uniform_union(spec.n_routed_experts, point.top_k, point.chunk) / spec.n_routed_experts
    params = spec.routed_params * share + (spec.always_active_params if point.mode == "cpu" else 0)
    read_s = params * point.expert_bits / 8 / (eta * point.bandwidth_gb_per_s * GB)
    work = 2e-9 * cpu_params(spec, point.mode, point.cpu_share, point.top_k) * point.prompt / point.num_cores
    return point.prompt / point.chunk * (read_s + fixed_s), work


@cache
def compute_fit(unit: str) -> ComputeFit:
    """The rate of a unit and its leave-one-out errors. ValueError for another unit."""
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}, expected one of {', '.join(UNITS)}")
    points = tuple(point for point in PREFILL_POINTS if point.unit == unit)
    apart = [_reading_and_work(point) for point in points]
    rates = np.array([
        work / (point.prompt / point.tok_per_s - other_s)
        for point, (other_s, work) in zip(points, apart, strict=True)
    ])  # fmt: skip
    left_out = []
    for index, (point, (other_s, work)) in enumerate(zip(points, apart, strict=True)):
        rate = float(np.exp(np.log(np.delete(rates, index)).mean()))
        left_out.append(point.prompt / (other_s + work / rate))
    return ComputeFit(unit, points, float(np.exp(np.log(rates).mean())), np.array(left_out))


def core_gflop_per_s(unit: str, tokens_per_expert: float) -> float:
    """Rate of a core where each expert has so many tokens of a step; "amx" is no slower than vectors."""
    vector = compute_fit("vector").gflop_per_core
    if unit == "vector":
        return vector
    return max(vector, compute_fit(unit).gflop_per_core * min(1.0, tokens_per_expert / TILE_TOKENS))
