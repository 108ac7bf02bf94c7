"""CALIBRATED: parameters fitted to real routing, by the model that they were fitted to.  Floor 2.

Each by ``moelab.realism.fit`` on half of the requests of one capture. For a model without a capture (K2.6,
DeepSeek-V3) they are carried over from a smaller one, and ``source`` says so: nobody has compared the result with
routing of that model. Carried over between the two captured models they miss by up to 18 points of miss ratio
(``moelab synth --compare TRACE --parameters NAME``), so take such a trace for its shape and size, not for hit rates.
"""

from __future__ import annotations

from moelab.synthetic.parameters import RoutingParameters

START = RoutingParameters(
    popularity=1.0, topic=2.0, domain_share=0.3, drift=1.3, drift_memory=0.7, content=2.0, shared_content=0.8,
    alike=0.3, persistence=0.3, latent_size=16, source="by hand, fitted to nothing",
)  # fmt: skip
"""Where a fit begins."""

CALIBRATED: dict[str, RoutingParameters] = {
    "deepseek-v2-lite": RoutingParameters(
        popularity=1.0367, topic=4.2672, domain_share=0.9828, drift=4.7202, drift_memory=0.9802, content=10.569,
        shared_content=0.9975, alike=0.6631, persistence=3.0556, latent_size=16, gate_temperature=7.254,
        source="fitted to half of the requests of deepseek-v2-lite (ESFT's capture: prefill, four narrow domains)",
    ),
    "gpt-oss-20b": RoutingParameters(
        popularity=1.8467, topic=2.5752, domain_share=0.9975, drift=2.1746, drift_memory=0.982, content=3.7069,
        shared_content=0.9975, alike=0.7777, persistence=1.314, latent_size=16, gate_temperature=6.389,
        source="fitted to half of the requests of gpt-oss-20b (expert fingerprints: decode)",
    ),
    "nano": RoutingParameters(
        popularity=0.0016, topic=1.2887, domain_share=0.1731, drift=2.5963, drift_memory=0.9949, content=2.5651,
        shared_content=0.9975, alike=0.7245, persistence=0.0624, latent_size=16, gate_temperature=8.2,
        source="fitted to half of the requests of nano (the capture that ships); LRU misses up to 9 points too few",
    ),
}  # fmt: skip

CARRIED_OVER = "deepseek-v2-lite"

UNCHECKED = "carried over to {} unchecked; between captured models that costs up to 18 points of miss ratio"


def parameters_for(model: str, name: str | None = None) -> RoutingParameters:
    """The entry ``name``, else the one fitted to ``model``, else ``CARRIED_OVER``, which then says so.

    Raises ``ValueError`` for a name that is not in ``CALIBRATED``.
    """
    if name is not None and name not in CALIBRATED:
        raise ValueError(f"parameters {name!r}, expected one of {', '.join(CALIBRATED)}")
    chosen = name or (model if model in CALIBRATED else CARRIED_OVER)
    parameters = CALIBRATED[chosen]
    if chosen == model:
        return parameters
    return parameters.model_copy(update={"source": f"{parameters.source}, {UNCHECKED.format(model)}"})
