"""ExpertTimes: what layer-steps of one expert shape take on the nodes of a machine; measured, with residuals.

Knows the numbers and how they scale with bytes, tokens and pieces. Does not know how layer-steps are put together
(``cost_model.node_time``) or how the numbers are measured (``moelab.calibrate``). Floor 0: pydantic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from moelab.domain.spread import Spread

SAME_RATE = 0.05
"""Read rates of nodes that differ by less count as equal: two runs of one node differ by as much."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BusyNodes(_Document):
    """While several nodes compute or read at once, each one.

    ``read_gb_per_s``: of a pure read of its own bytes. ``kernel_share``: what kernels reach of the rate that this read
    rate and the kernels' own computing allow (waiting for one another is in it).
    """

    read_gb_per_s: float = Field(gt=0)
    kernel_share: float = Field(gt=0)


class NodeTimes(_Document):
    """One node beside the first. ``factor``: time of a whole expert here over its time on the first node, by the number
    of its tokens (straight lines between, the last beyond); ``read_gb_per_s``: of a pure read of its own bytes, alone.
    """

    workers: int = Field(ge=1)
    factor: dict[int, float] = Field(min_length=1)
    read_gb_per_s: float = Field(gt=0)


class Uploads(_Document):
    """Copies of experts by something that is no worker, beside a node. GB/s of experts, not of both directions.

    ``alone_gb_per_s`` while nothing else runs; ``beside_gb_per_s`` beside a read loop that then has
    ``read_gb_per_s``. The shares are of kernels and copies at once, as in ``BusyNodes``. ``start_s``: what copies take
    beyond their bytes where nothing was being copied, from asking to the first byte and from the last one to its news.
    """

    by: str
    alone_gb_per_s: float = Field(gt=0)
    beside_gb_per_s: float = Field(gt=0)
    read_gb_per_s: float = Field(gt=0)
    kernel_share: float = Field(gt=0)
    upload_share: float = Field(gt=0)
    start_s: float = Field(default=0.0, ge=0)


class ExpertTimes(_Document):
    """One kernel at one expert shape, on nodes of ``workers_of_node`` workers, or on unequal ``nodes``.

    ``kernel``: ``isa/weight format/activation``. ``layer_s``: a layer-step without experts, its call and meetings;
    ``token_s``: each of its tokens (quantising, adding up). ``expert_s``: seconds of one whole expert on one node while
    the others rest, by the number of its tokens. ``piece_factor``: time of an expert cut into so many equal pieces, all
    on one node, over its time whole. ``busy``: by number of nodes at work, from 2 on, as the first node would read;
    ``nodes``: every node, the first with factors 1, of which all other figures are; empty: nobody measured the others,
    so all are as the first. ``scaled_by``: said where ``nodes`` were not measured but follow from that.
    ``sharpness``: how abruptly memory takes over from the kernels (``cost_model.node_time``). ``residual``: median
    relative error of the fit over the calls that gave it, ``num_calls``. ``expert_s_spread``: of the seconds of an
    expert of one token over the rounds of those calls, by all that ran on the first node alone; ``date``: of that
    measurement. Both are ``None`` in older files, which have the machine's date alone.
    """

    kernel: str
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    expert_bytes: int = Field(ge=1)
    workers_of_node: int = Field(ge=1)
    layer_s: float = Field(ge=0)
    token_s: float = Field(ge=0)
    expert_s: dict[int, float]
    piece_factor: dict[int, float] = Field(default_factory=dict)
    read_gb_per_s: float = Field(gt=0)
    sharpness: float = Field(default=4.0, gt=0)
    busy: dict[int, BusyNodes] = Field(default_factory=dict)
    uploads: Uploads | None = None
    nodes: tuple[NodeTimes, ...] = ()
    scaled_by: str | None = None
    date: str | None = None
    expert_s_spread: Spread | None = None
    residual: float
    num_calls: int

    @property
    def name(self) -> str:
        scaled = "" if self.scaled_by is None else f", nodes scaled by {self.scaled_by}"
        return f"{self.kernel} at {self.hidden_size} x {self.intermediate_size}{scaled}"

    @property
    def without_cost(self) -> dict[str, Any]:
        """Fields that no cost depends on, or that say nothing: a document of before they were there is the same."""
        left_out: dict[str, Any] = {"expert_s_spread": True} | {
            name: True for name in ("nodes", "scaled_by", "date") if not getattr(self, name)
        }
        return left_out | ({"uploads": {"start_s"}} if self.uploads is not None and not self.uploads.start_s else {})

    def scaled(self, rates: Sequence[float], by: str) -> ExpertTimes:
        """With nodes whose times are to the first's as their read ``rates`` [N] are, where these differ at all."""
        if self.nodes or max(rates) <= (1 + SAME_RATE) * min(rates):
            return self
        nodes = tuple(
            NodeTimes(
                workers=self.workers_of_node,
                factor={1: rates[0] / rate},
                read_gb_per_s=self.read_gb_per_s * rate / rates[0],
            )
            for rate in rates
        )
        return self.model_copy(update={"nodes": nodes, "scaled_by": by})

    def has_workers(self, num_workers: Sequence[int]) -> bool:
        """Were nodes of so many workers [N] measured? Where nodes were scaled the first one's count."""
        if self.scaled_by is not None:
            return num_workers[0] == self.workers_of_node
        if not self.nodes:
            return set(num_workers) == {self.workers_of_node}
        return list(num_workers) == [node.workers for node in self.nodes]

    def is_for(self, hidden_size: int | None, intermediate_size: int | None, kernel: str | None = None) -> bool:
        """The same shape, and kernel where one is named."""
        same = (self.hidden_size, self.intermediate_size) == (hidden_size, intermediate_size)
        return same and kernel in (None, self.kernel)
