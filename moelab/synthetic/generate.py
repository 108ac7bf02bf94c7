"""generate: synthetic routing, request after request, from latents of request, time and token.  Floor 2.

    score(t, e) = f_l (b_e + u_e . (z_request + y_t + x_t)) + persistence [e used by token t - 1] + Gumbel noise

and the k best are chosen: a Plackett-Luce draw with latent state. One global popularity cannot be strong
within a request and weak in the pool, as real routing is; the request's latent z is there for that, with a part
common to its domain. y is an AR(1) drift, x the token's own, partly shared by all layers, f_l is smaller in early
layers. ``u`` has unit length and is drawn anew in each layer, in part common to four experts of a kind; latents are
standard normal.

What it does not know: text (tokens do not repeat), experts that specialise in one token, affinity that falls
with the distance of layers, training's load balancing, gate weights beyond their mean, tails of request
lengths. ``moelab.realism`` measures how far that carries. A request depends on the seed, its number, its
domain and its length only, so that requests may be made in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moelab.domain.trace import Phase, TokenTable, Trace, TraceHeader
from moelab.synthetic.choose import NOISE, choose
from moelab.synthetic.parameters import RoutingParameters
from moelab.synthetic.shape import RoutingShape
from moelab.synthetic.workload import Workload

BATCH_TOKENS = 4096
_KIND = 4  # experts of one kind


@dataclass(frozen=True, eq=False)
class _Experts:
    """Fixed for the whole trace: ``own`` float32 [L, E], ``direction`` float32 [L, latent size, E], both with f_l."""

    own: np.ndarray
    direction: np.ndarray
    of_domain: np.ndarray


def header_of(shape: RoutingShape, parameters: RoutingParameters, workload: Workload, seed: int) -> TraceHeader:
    """Header that says synthetic, from what, and with which seed."""
    return TraceHeader(
        model=f"synthetic {shape.name}", model_type=shape.model_type, num_layers=shape.num_layers,
        num_experts=shape.num_experts, top_k=shape.top_k,
        model_layer_of_layer=shape.model_layer_of_layer or tuple(range(shape.num_layers)),
        expert_bytes=shape.expert_bytes or (0,) * shape.num_layers, hidden_size=shape.hidden_size,
        moe_intermediate_size=shape.moe_intermediate_size, model_fingerprint=shape.model_fingerprint,
        gate_weight_kind="normalised" if shape.gate_scale == 1 else "normalised_scaled", slot_order="rank",
        engine="moelab.synthetic", quantization=shape.quantization, licence="Apache-2.0",
        provenance=f"synthetic, seed {seed}, {parameters.source}; {parameters.model_dump_json(exclude={'source'})}",
        synthetic=True, domains=workload.domains,
    )  # fmt: skip


def generate(
    shape: RoutingShape,
    parameters: RoutingParameters,
    workload: Workload,
    *,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Trace]:
    """The trace in batches of whole requests, of ``batch_tokens`` or more; memory holds one batch.

    Raises ``ValueError`` where the groups do not divide the experts or do not hold K of them.
    """
    _check_groups(shape)
    header = header_of(shape, parameters, workload, seed)
    experts = _experts(shape, parameters, workload, seed)
    waiting: list[tuple[np.ndarray, np.ndarray, TokenTable]] = []
    step = num_waiting = 0
    for request in range(workload.num_requests):
        table = _tokens(workload, request, step)
        if not len(table):
            continue
        step = int(table.step[-1]) + 1
        waiting.append((*_route(shape, parameters, experts, workload, request, len(table), seed), table))
        num_waiting += len(table)
        if num_waiting >= batch_tokens:
            yield _batch(header, waiting)
            waiting, num_waiting = [], 0
    if waiting:
        yield _batch(header, waiting)


def _check_groups(shape: RoutingShape) -> None:
    if shape.num_experts % shape.num_groups or not 0 < shape.groups_kept <= shape.num_groups:
        raise ValueError(
            f"{shape.num_experts} experts in {shape.num_groups} groups of which {shape.groups_kept} are kept, expected "
            "groups of equal size and at least one kept"
        )
    if shape.groups_kept * (shape.num_experts // shape.num_groups) < shape.top_k:
        raise ValueError(
            f"{shape.groups_kept} groups of {shape.num_experts // shape.num_groups} experts hold less than "
            f"top-{shape.top_k}: keep more of them"
        )


def _experts(shape: RoutingShape, parameters: RoutingParameters, workload: Workload, seed: int) -> _Experts:
    rng = np.random.default_rng([seed, 2])
    layer = np.arange(shape.num_layers)
    full = 1 - (1 - parameters.first_layer) * np.exp(-layer / parameters.early_layers)
    own = rng.standard_normal((shape.num_layers, shape.num_experts), np.float32) * parameters.popularity
    direction = _directions(rng, (shape.num_layers, parameters.latent_size, shape.num_experts), parameters.alike)
    full = full.astype(np.float32)
    of_domain = rng.standard_normal((max(1, len(workload.domains)), parameters.latent_size), np.float32)
    return _Experts(own * full[:, None], direction * full[:, None, None], of_domain)


def _directions(rng: np.random.Generator, shape: tuple[int, int, int], alike: float) -> np.ndarray:
    """float32 [L, latent size, E] of unit length; ``_KIND`` experts, drawn at random in each layer, are of one kind."""
    num_layers, size, num_experts = shape
    own = rng.standard_normal(shape, np.float32)
    kinds = rng.standard_normal((num_layers, size, -(-num_experts // _KIND)), np.float32)
    kind_of_expert = np.argsort(rng.random((num_layers, num_experts)), axis=1) // _KIND
    common = np.take_along_axis(kinds, np.broadcast_to(kind_of_expert[:, None], shape), axis=2)
    direction = np.float32(np.sqrt(alike)) * common + np.float32(np.sqrt(1 - alike)) * own
    return direction / np.linalg.norm(direction, axis=1, keepdims=True)


def _route(
    shape: RoutingShape, parameters: RoutingParameters, fixed: _Experts, workload: Workload, request: int,
    num_tokens: int, seed: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(experts uint16, gate weights float16) [T, L, K] of one request."""
    rng = np.random.default_rng([seed, 3, request])
    size = parameters.latent_size
    own_topic = rng.standard_normal(size, np.float32)
    common = fixed.of_domain[workload.domain[request]]
    topic = parameters.topic * (
        np.sqrt(parameters.domain_share) * common + np.sqrt(1 - parameters.domain_share) * own_topic
    )
    slow = topic + parameters.drift * _drift(rng, num_tokens, size, parameters.drift_memory)
    shared = np.float32(parameters.content * np.sqrt(parameters.shared_content))
    alone = np.float32(parameters.content * np.sqrt(1 - parameters.shared_content))
    slow = (slow + shared * rng.standard_normal((num_tokens, size), np.float32)).astype(np.float32)
    experts = np.empty((num_tokens, shape.num_layers, shape.top_k), np.uint16)
    scores = np.empty((num_tokens, shape.num_layers, shape.top_k), np.float32)
    for layer in range(shape.num_layers):
        noise_seed = rng.integers(0, 2**64, dtype=np.uint64)
        latent = slow + alone * rng.standard_normal((num_tokens, size), np.float32) if alone else slow
        ids, best = np.empty(experts.shape[::2], np.uint16), np.empty(experts.shape[::2], np.float32)
        choose(
            latent, fixed.own[layer], fixed.direction[layer], np.float32(parameters.persistence), shape.num_groups,
            shape.groups_kept, noise_seed, NOISE, ids, best,
        )  # fmt: skip
        experts[:, layer], scores[:, layer] = ids, best
    gates = np.exp((scores - scores[..., :1]) / np.float32(parameters.gate_temperature))
    gates *= np.float32(shape.gate_scale) / gates.sum(-1, keepdims=True)
    return experts, gates.astype(np.float16)


def _drift(rng: np.random.Generator, num_tokens: int, size: int, memory: float) -> np.ndarray:
    """float32 [T, size]: stationary AR(1) of unit variance."""
    from scipy.signal import lfilter

    innovation = rng.standard_normal((num_tokens, size), np.float32)
    innovation[1:] *= np.sqrt(1 - memory**2)
    return lfilter([1.0], [1.0, -memory], innovation, axis=0).astype(np.float32)


def _tokens(workload: Workload, request: int, step: int) -> TokenTable:
    """Rows of one request that begins at ``step``: its prompt in one step, then a step for each token."""
    prefill, decode = int(workload.num_prefill[request]), int(workload.num_decode[request])
    row = np.arange(prefill + decode)
    return TokenTable.build(
        step=step + np.where(row < prefill, 0, row - prefill + (prefill > 0)), request=request, position=row,
        phase=np.where(row < prefill, Phase.PREFILL, Phase.DECODE), domain=workload.domain[request],
    )  # fmt: skip


def _batch(header: TraceHeader, parts: list[tuple[np.ndarray, np.ndarray, TokenTable]]) -> Trace:
    experts, gates = (np.concatenate([part[i] for part in parts]) for i in range(2))
    return Trace(header, experts, gates, TokenTable.concatenate([part[2] for part in parts]))
