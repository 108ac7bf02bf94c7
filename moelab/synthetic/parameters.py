"""RoutingParameters: the knobs of the generator, each tied to one thing that real routing does.  Floor 2."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RoutingParameters(BaseModel):
    """Strengths in units of the score, whose noise is a standard Gumbel (deviation 1.28).

    ``popularity``: spread of the experts' own scores, the pooled skew. ``topic``: weight of the request's latent, the
    skew of one request; ``domain_share`` of its variance is common to the domain. ``drift``: weight of a slow
    latent within the request, with ``drift_memory`` from one token to the next. ``content``: weight of the
    token's own latent, what makes experts fire together; ``shared_content`` of its variance is the same in all
    layers. ``alike``: part of an expert's direction in the latents that it has in common with the three others of its
    kind, what makes tight pairs. ``persistence``: added to the score of the experts of the token before.
    ``latent_size``: dimension of the latents; fewer make more experts alike. ``first_layer``: the spreads above in
    layer 0 as a part of their full size, which later layers approach with the scale ``early_layers``.
    ``gate_temperature`` of the softmax over the selected scores. ``source`` says what they were fitted to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    popularity: float = Field(ge=0)
    topic: float = Field(ge=0)
    domain_share: float = Field(ge=0, le=1)
    drift: float = Field(ge=0)
    drift_memory: float = Field(ge=0, lt=1)
    content: float = Field(ge=0)
    shared_content: float = Field(ge=0, le=1)
    alike: float = Field(ge=0, le=1)
    persistence: float = Field(ge=0)
    latent_size: int = Field(ge=1)
    first_layer: float = Field(default=0.7, gt=0, le=1)
    early_layers: float = Field(default=3.0, gt=0)
    gate_temperature: float = Field(default=1.0, gt=0)
    source: str
