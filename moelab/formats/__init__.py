"""Floor 1. One file for each foreign trace format: found by name in ``FORMATS``, no registration.

A format module has ``matches(path) -> bool`` (cheap, by suffix and first bytes) and
``read(path, **options) -> Trace``. It imports from ``moelab.domain`` only.
"""

from __future__ import annotations

from types import ModuleType

from moelab.formats import vllm_routed_experts

FORMATS: dict[str, ModuleType] = {"vllm_routed_experts": vllm_routed_experts}
