"""Spread: how much a measured figure moved while it was measured by turns, and which way.

What a machine does to a figure within minutes it does to predictions made from it. Does not know what was measured, nor
how much is too much. Floor 0: NumPy, pydantic.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Spread(BaseModel):
    """Of ``num_rounds`` rounds: lower quartile, median, upper quartile; ``drift``: the median of the last third of the
    rounds over that of the first third, - 1 (0 with fewer than three)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float = Field(ge=0)
    middle: float = Field(gt=0)
    high: float = Field(ge=0)
    drift: float
    num_rounds: int = Field(ge=1)

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """``values`` [rounds] in their order; raises ``ValueError`` where one is not above 0."""
        if not (values > 0).all():
            raise ValueError(f"a round has {values.min()}, expected more than 0: measure again")
        low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
        third = len(values) // 3
        drift = float(np.median(values[-third:]) / np.median(values[:third]) - 1) if third else 0.0
        return cls(low=low, middle=middle, high=high, drift=drift, num_rounds=len(values))

    @property
    def width(self) -> float:
        """The middle half over the median."""
        return (self.high - self.low) / self.middle

    def scaled(self, factor: float) -> Spread:
        """The same of a figure ``factor`` times as large."""
        ends = {name: factor * getattr(self, name) for name in ("low", "middle", "high")}
        return self.model_copy(update=ends)

    def text(self, digits: int) -> str:
        """As it stands behind the figure in tables."""
        return f"quartiles {self.low:.{digits}f} to {self.high:.{digits}f}, drift {self.drift:+.0%}"
