"""TextDifference: texts after a move beside those without it, and how sure the model was where they part.  Floor 4.

Homes that move between nodes change no bit, so no token. A fast tier computes in another format and order: a token may
differ there where the two likeliest were nearly alike. From the first that differs on a text goes its own way, so that
only that token says something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MARGIN = 0.25
"""Top-2 margin in logits below which a token may differ by a move to or from a fast tier: several times what
nano showed (docs/log.md); a model of other logits may need another (``moelab apply --margin``)."""

Text = Sequence[tuple[int, float]]
"""(token, top-2 margin) of each token."""


@dataclass(frozen=True)
class TextDifference:
    """``first``: for each text that differs (its number, place of the first other token, top-2 margin there without
    the move). ``allowed``: the margin below which that may be; 0: never."""

    num_texts: int
    num_tokens: int
    num_different_tokens: int
    first: tuple[tuple[int, int, float], ...]
    allowed: float

    @classmethod
    def of(cls, without: Sequence[Text], moved: Sequence[Text], allowed: float) -> TextDifference:
        """Texts of equal lengths."""
        first, different, total = [], 0, 0
        for number, (before, after) in enumerate(zip(without, moved, strict=True)):
            places = [place for place, (a, b) in enumerate(zip(before, after, strict=True)) if a[0] != b[0]]
            total += len(before)
            different += len(places)
            if places:
                first.append((number, places[0], float(before[places[0]][1])))
        return cls(len(without), total, different, tuple(first), allowed)

    @property
    def largest_margin(self) -> float | None:
        """Of the first other tokens; ``None`` where no text differs."""
        return max((margin for *_, margin in self.first), default=None)

    @property
    def is_allowed(self) -> bool:
        return not self.first or (self.largest_margin or 0.0) < self.allowed

    def summary(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "texts_equal": self.num_texts - len(self.first),
            "tokens_compared": self.num_tokens,
            "tokens_different": self.num_different_tokens,
            "first_differences": [
                {"text": text, "token": token, "top2_margin": margin} for text, token, margin in self.first
            ],
            "largest_top2_margin": self.largest_margin,
            "allowed_top2_margin": self.allowed,
            "difference_allowed": self.is_allowed,
        }
