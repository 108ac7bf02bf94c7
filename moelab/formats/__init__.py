"""Floor 1. One file for each foreign format: found by name in ``FORMATS`` or ``COUNT_FORMATS``, no registration.

A format module has ``matches(path) -> bool`` (cheap, by suffix and first bytes; a folder may match) and
``read(path, **options)``, which gives a ``Trace`` (``FORMATS``) or a ``CountsTable`` (``COUNT_FORMATS``: counts can be
analysed, not simulated). It imports from ``moelab.domain`` only.
"""

from __future__ import annotations

from types import ModuleType

from moelab.formats import (
    arrays_npz,
    bigmoeonedge_route_trace,
    esft,
    gpt_oss_fingerprint,
    mbolt_coactivation,
    vllm_routed_experts,
)

FORMATS: dict[str, ModuleType] = {
    "vllm_routed_experts": vllm_routed_experts,
    "bigmoeonedge_route_trace": bigmoeonedge_route_trace,
    "esft": esft,
    "gpt_oss_fingerprint": gpt_oss_fingerprint,
    "arrays_npz": arrays_npz,
}
COUNT_FORMATS: dict[str, ModuleType] = {"mbolt_coactivation": mbolt_coactivation}
