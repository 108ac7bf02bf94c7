"""RoutingShape: layers, experts, top-k and groups of the model whose routing is imitated.  Floor 2."""

from __future__ import annotations

from dataclasses import dataclass

from moelab.domain.model import ModelSpec
from moelab.domain.trace import TraceHeader


@dataclass(frozen=True)
class RoutingShape:
    """L, E, K; with ``num_groups`` > 1 a token's experts come from its ``groups_kept`` best groups (DeepSeek-V3).

    ``gate_scale`` multiplies the normalised gate weights. The rest goes into the header.
    """

    name: str
    model_type: str
    num_layers: int
    num_experts: int
    top_k: int
    num_groups: int = 1
    groups_kept: int = 1
    gate_scale: float = 1.0
    model_layer_of_layer: tuple[int, ...] = ()
    expert_bytes: tuple[int, ...] = ()
    hidden_size: int | None = None
    moe_intermediate_size: int | None = None
    quantization: str = "none"
    model_fingerprint: str | None = None

    @classmethod
    def of_model(cls, spec: ModelSpec) -> RoutingShape:
        """Of a model, experts in its native format."""
        weight_format = spec.native_formats["routed_experts"]
        return cls(
            name=spec.name or spec.label,
            model_type=spec.model_type,
            num_layers=spec.num_moe_layers,
            num_experts=spec.n_routed_experts,
            top_k=spec.num_experts_per_tok,
            num_groups=spec.n_group or 1,
            groups_kept=spec.topk_group or 1,
            gate_scale=spec.routed_scaling_factor or 1.0,
            model_layer_of_layer=tuple(spec.model_layer_of_layer),
            expert_bytes=(spec.expert_bytes(weight_format),) * spec.num_moe_layers,
            hidden_size=spec.hidden_size,
            moe_intermediate_size=spec.moe_intermediate_size,
            quantization=weight_format,
            model_fingerprint=spec.fingerprint,
        )

    @classmethod
    def of_trace(cls, header: TraceHeader) -> RoutingShape:
        """Of a recorded trace, ungrouped (a header does not say groups)."""
        return cls(
            name=header.model, model_type=header.model_type, num_layers=header.num_layers,
            num_experts=header.num_experts, top_k=header.top_k, model_layer_of_layer=header.model_layer_of_layer,
            expert_bytes=header.expert_bytes, hidden_size=header.hidden_size,
            moe_intermediate_size=header.moe_intermediate_size, quantization=header.quantization,
        )  # fmt: skip
