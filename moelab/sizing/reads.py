"""What one decode step reads: experts on the CPU and the fast tier, what every token reads, the cache.  Floor 2.

A step of B tokens reads the union of their experts in each layer. Measured unions (`cost_model.batch_union` on a
trace of the same E and K) are used where given, else uniform routing, E (1 - (1 - K/E)^B), an upper bound that real
routing stays below; the result says which. Hits of a fast tier come in as reads per layer-step, a number (of a
simulation), or as the share of the experts that lies there, under uniform routing.

It does not know which experts: that is the simulator's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from moelab.domain.model import ModelSpec
from moelab.sizing.places import Places
from moelab.sizing.recipes import Recipe


def uniform_union(num_experts: int, top_k: int, batch: float) -> float:
    """Distinct experts of a layer that B tokens use under uniform routing: E (1 - (1 - K/E)^B)."""
    if not 0 < top_k <= num_experts or batch < 0:
        raise ValueError(f"top-{top_k} of {num_experts}, batch {batch}: expected 0 < K <= E and batch >= 0")
    return num_experts * (1 - (1 - top_k / num_experts) ** batch)


def cache_read_bytes(spec: ModelSpec, context: int, batch: int, kv_format: str = "bf16") -> int:
    """Bytes of the cache that one step reads: all of it; with a DSA indexer its keys and index_topk tokens."""
    if spec.indexer_types is None:
        return spec.kv_cache_bytes(context, batch, kv_format)
    keys = spec.memory(context, batch, kv_format=kv_format).bytes_of_part["indexer_keys"]
    chosen = min(context, spec.index_topk or context)
    return keys + spec.memory(chosen, batch, kv_format=kv_format).bytes_of_part["kv_cache"]


@dataclass(frozen=True)
class StepReads:
    """Bytes of one step of `batch` tokens, over all layers. `distinct` experts of a layer, `reads_per_layer_step`
    of them (and of uploads) at home; `union_from` and `hits_from` say where the two numbers come from."""

    batch: int
    distinct: float
    union_from: str
    reads_per_layer_step: float
    hits_from: str
    home_bytes: float
    fast_expert_bytes: float
    always_bytes: int
    cache_bytes: int


def step_reads(
    spec: ModelSpec,
    recipe: Recipe,
    places: Places,
    *,
    context: int,
    batch: int = 1,
    kv_format: str = "bf16",
    distinct: float | None = None,
    union_from: str = "measured",
    reads_per_layer_step: float | None = None,
    hits_per_layer_step: float | None = None,
    hits_from: str = "given reads per layer-step",
) -> StepReads:
    """Reads of one step on `places`.

    `distinct`: measured experts of a layer and step; `reads_per_layer_step`: distinct misses + uploads + prefetches
    + late of a simulation at this batch; `hits_per_layer_step`: its distinct hits, else what the reads leave of the
    union, which is too few where some reads are uploads. ValueError where they are not possible for K, E and the batch.
    """
    experts, top_k, num_layers = spec.n_routed_experts, spec.num_experts_per_tok, spec.num_moe_layers
    if distinct is None and batch == 1:
        distinct, union_from = float(top_k), "exact: one token"
    elif distinct is None:
        distinct, union_from = uniform_union(experts, top_k, batch), "uniform routing"
    if not 0 < distinct <= min(experts, batch * top_k) * (1 + 1e-9):
        raise ValueError(
            f"distinct experts of a layer are {distinct:.4g}, expected at most {min(experts, batch * top_k)} for "
            f"{batch} tokens of top-{top_k} among {experts}"
        )
    expert_bytes = recipe.expert_bytes(spec)
    if reads_per_layer_step is None:
        reads_per_layer_step = distinct * (1 - places.fast_share)
        hits_from = "no expert on a GPU" if not places.fast_share else "share of experts on GPUs, uniform routing"
        fast_experts = distinct - reads_per_layer_step
    else:
        if not reads_per_layer_step >= 0:
            raise ValueError(f"reads per layer-step are {reads_per_layer_step}, expected 0 or more")
        left = max(0.0, distinct - reads_per_layer_step)
        fast_experts = left if hits_per_layer_step is None else hits_per_layer_step
        if not left - 1e-9 <= fast_experts <= distinct + 1e-9:
            raise ValueError(
                f"hits per layer-step are {fast_experts}, expected {left:.4g} to {distinct:.4g}: every distinct expert "
                "is a hit or read at home"
            )
    return StepReads(
        batch=batch,
        distinct=distinct,
        union_from=union_from,
        reads_per_layer_step=reads_per_layer_step,
        hits_from=hits_from,
        home_bytes=reads_per_layer_step * num_layers * expert_bytes,
        fast_expert_bytes=fast_experts * num_layers * expert_bytes,
        always_bytes=places.need.always_bytes,
        cache_bytes=cache_read_bytes(spec, context, batch, kv_format),
    )
