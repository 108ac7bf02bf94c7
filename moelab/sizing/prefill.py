"""Prefill: ceilings of reading a prompt, beside published rates.  Floor 2.

Prefill is not decode: a chunk of C tokens reads nearly every expert once and computes C times as much. Two ways have
a bandwidth ceiling here: the CPU computes (experts read from RAM), or experts are copied over the link and the GPU
computes. Neither computing nor attention is counted, so both are ceilings, never predictions; published
rates stand beside them because no model of ours was validated on prefill.
"""

from __future__ import annotations

from dataclasses import dataclass

from moelab.domain.machine import Machine
from moelab.domain.model import ModelSpec
from moelab.domain.units import GB
from moelab.sizing.reads import uniform_union
from moelab.sizing.recipes import Recipe


@dataclass(frozen=True)
class PublishedPrefill:
    """A published prefill rate."""

    model: str
    hardware: str
    tok_per_s: float
    source: str


_K2_BOX, _KT_DOCS = "2 x Xeon 8488C, native int4", "ktransformers doc of Kimi-K2-Thinking"
# facts/models_and_sizing.md section 3 (32K prefill) and facts/engines.md (KT 0.2).
PUBLISHED_PREFILL: tuple[PublishedPrefill, ...] = (
    PublishedPrefill("deepseek-v3", "1 x Xeon 6454S, RTX 4090D, Q4_K_M", 54.0, "ktransformers tutorial, v0.2"),
    PublishedPrefill("deepseek-r1", "1 x Xeon 6980P, CPU only", 93.0, "ik_llama.cpp#541"),
    PublishedPrefill("kimi-k2-thinking", f"{_K2_BOX}, 1 x RTX 4090 48 GB, prompt 2K", 53.0, _KT_DOCS),
    PublishedPrefill("kimi-k2-thinking", f"{_K2_BOX}, 1 x RTX 4090 48 GB, prompt 32K", 290.0, _KT_DOCS),
    PublishedPrefill("kimi-k2-thinking", f"{_K2_BOX}, 8 x RTX 4090 48 GB, prompt 32K", 1055.0, _KT_DOCS),
)


@dataclass(frozen=True)
class PrefillCeiling:
    """Seconds and rates that reading alone allows; `None` where the machine has no such way."""

    prompt: int
    chunk: int
    read_bytes: float
    cpu_tok_per_s: float
    link_tok_per_s: float | None


def prefill_ceiling(
    spec: ModelSpec, recipe: Recipe, machine: Machine, prompt: int, chunk: int = 4096
) -> PrefillCeiling:
    """Ceilings for a prompt of `prompt` tokens in chunks of `chunk`. ValueError for sizes below 1 or no read rate."""
    if prompt < 1 or chunk < 1:
        raise ValueError(f"prompt {prompt} in chunks of {chunk}, expected both at least 1")
    whole, rest = divmod(prompt, chunk)
    experts, top_k = spec.n_routed_experts, spec.num_experts_per_tok
    reads = whole * uniform_union(experts, top_k, chunk) + uniform_union(experts, top_k, rest)
    read_bytes = reads * spec.num_moe_layers * recipe.expert_bytes(spec)
    links = [tier.link_gb_per_s for tier in machine.fast_tiers if tier.link_gb_per_s and not machine.unified_memory]
    bandwidth = bandwidth_gb_per_s(machine)
    return PrefillCeiling(
        prompt=prompt,
        chunk=chunk,
        read_bytes=read_bytes,
        cpu_tok_per_s=prompt * bandwidth * GB / read_bytes,
        link_tok_per_s=prompt * min(sum(links), bandwidth) * GB / read_bytes if links else None,
    )


def bandwidth_gb_per_s(machine: Machine) -> float:
    """GB/s of all nodes together, each at its best thread count. ValueError names a node without a rate."""
    total = 0.0
    for node in machine.nodes:
        if node.best_read_gb_per_s is None:
            raise ValueError(f"{node.name} of machine {machine.name} has no read rate: probe or calibrate it first")
        total += node.best_read_gb_per_s
    return total
