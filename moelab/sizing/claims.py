"""Claims: what somebody wrote about a model on a machine, recomputed, with a verdict by one rule.  Floor 2.

A claim is a number or a range in a unit, and a function that computes it anew. The rule: it holds where the stated and
the recomputed range overlap after the stated one is widened by the claim's tolerance (what "about" may mean there);
else it is wrong, by the factor between the nearest ends. A recomputed range may be the interval of a
prediction: then overlapping says "within the interval", which is weaker. Verdicts are never written by hand.

It does not know what a reader would have understood: `why` says where words are ambiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

Range = tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """`stated` and what `recompute` gives are in `unit`. `tolerance` is relative."""

    article: str
    text: str
    stated: float | Range
    unit: str
    recompute: Callable[[], float | Range]
    formula: str
    why: str = ""
    tolerance: float = 0.05
    is_prediction: bool = False


@dataclass(frozen=True)
class Verdict:
    """A claim, what it was recomputed to, and how many times off it is (1 where it holds)."""

    claim: Claim
    recomputed: Range
    factor: float

    @property
    def holds(self) -> bool:
        return self.factor == 1

    @property
    def words(self) -> str:
        if self.holds:
            return "within the interval" if self.claim.is_prediction else "holds"
        if self.factor == 0 or self.factor == float("inf"):
            return "wrong"
        low = self.factor > 1
        times = self.factor if low else 1 / self.factor
        size = f"{times:,.0f} times" if times >= 10 else f"{times:.1f} times" if times >= 1.95 else f"{times - 1:.0%}"
        return f"wrong: {size} too {'low' if low else 'high'}"


def judge(claim: Claim) -> Verdict:
    """Recompute one claim. The factor is recomputed / stated between the nearest ends."""
    low, high = _range(claim.stated)
    got = _range(claim.recompute())
    if got[1] >= low - claim.tolerance * abs(low) and got[0] <= high + claim.tolerance * abs(high):
        return Verdict(claim, got, 1.0)
    nearest, mine = (low, got[1]) if got[1] < low else (high, got[0])
    return Verdict(claim, got, mine / nearest if nearest else float("inf"))


def judge_all(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row for each claim: article, claim, stated, recomputed, verdict, formula, why."""
    import pandas as pd

    rows = []
    for claim in claims:
        verdict = judge(claim)
        rows.append(
            {
                "article": claim.article,
                "claim": claim.text,
                "stated": f"{_text(_range(claim.stated))} {claim.unit}".strip(),
                "recomputed": f"{_text(verdict.recomputed)} {claim.unit}".strip(),
                "verdict": verdict.words,
                "formula": claim.formula,
                "why": claim.why,
            }
        )
    return pd.DataFrame(rows)


def _range(value: float | Range) -> Range:
    low, high = value if isinstance(value, tuple) else (value, value)
    if low > high:
        raise ValueError(f"range is {low} to {high}, expected the lower end first")
    return float(low), float(high)


def _text(ends: Range) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    low, high = ends
    if low == high:
        return number(low)
    if high == float("inf"):
        return f"above {number(low)}"
    return f"below {number(high)}" if low == 0 else f"{number(low)} to {number(high)}"
