"""Applied: what a change of plan moved, how long it took and what memory says.  Floor 4."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from moelab.domain.summary import summary_html, summary_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Applied:
    """Copies (of an expert or a piece of one) on nodes. ``peak_extra_bytes``: what copies took at most at once beyond
    the larger of before and after. ``homes_given_up``: experts that live on the fast tier alone from now on,
    ``homes_from_checkpoint``: those that came home again. ``resident_*_bytes``: of the process, before, at the end,
    and the most that was seen when a layer was there twice; ``None`` where the system does not say. ``fast_tier``:
    slots in use, ``None`` without one. ``slowness``: of a byte on each node, as dispatch is told; ``None``: equal;
    ``slowness_of``: whose rates those are.
    ``binding``: what memory of the experts is bound to, or why not; ``bytes_not_returned``: of what was removed the
    system kept them."""

    plan: str
    num_nodes: int
    virtual_nodes: bool
    binding: str
    slowness: tuple[float, ...] | None
    slowness_of: str
    copies_added: int
    copies_kept: int
    copies_removed: int
    bytes_added: int
    bytes_removed: int
    bytes_not_returned: int
    peak_extra_bytes: int
    homes_given_up: int
    home_bytes_given_up: int
    homes_from_checkpoint: int
    seconds: float
    resident_before_bytes: int | None
    resident_peak_bytes: int | None
    resident_after_bytes: int | None
    fast_tier: str | None

    def summary(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        return pd.DataFrame([self.summary()])

    def __repr__(self) -> str:
        return summary_text("Applied", self.summary())

    def _repr_html_(self) -> str:
        return summary_html("Applied", self.summary())
