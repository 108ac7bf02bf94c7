"""Rotary position embedding of the DeepSeek family: plain or yarn, interleaved pairs or halves.

Yarn: Peng et al. 2023, "YaRN: Efficient Context Window Extension", section 3.4, with DeepSeek's two
departures: cos and sin are scaled by mscale / mscale_all_dim (1 when both are equal), and the
softmax scale by the square of mscale_all_dim's factor. Same numbers as transformers 5
`modeling_rope_utils._compute_yarn_parameters`. Other rope types are refused by name.
It does not know attention. Floor 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class RopeSettings:
    """What the config says: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""

    rope_theta: float
    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True
    interleave: bool = True

    @classmethod
    def from_text_config(cls, config: Mapping[str, Any]) -> RopeSettings:
        """ValueError for a rope type that is neither default nor yarn."""
        given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        rope_type = given.get("rope_type") or given.get("type") or "default"
        theta = given.get("rope_theta") or config.get("rope_theta")
        if rope_type not in ("default", "yarn"):
            raise ValueError(f"rope type: expected default or yarn, got {rope_type!r}; use an engine that has it")
        if theta is None:
            raise ValueError("rope_theta: expected a number, got nothing; pass the model's whole config.json")
        interleave = config.get("rope_interleave")
        settings: dict[str, Any] = {"rope_theta": float(theta), "interleave": interleave is None or bool(interleave)}
        if rope_type == "yarn":
            longest = int(config.get("max_position_embeddings") or 0)
            original = int(given.get("original_max_position_embeddings") or longest)
            settings |= {
                "rope_type": rope_type,
                "factor": float(given["factor"] if given.get("factor") is not None else longest / original),
                "original_max_position_embeddings": original,
                "beta_fast": float(given.get("beta_fast") or 32),
                "beta_slow": float(given.get("beta_slow") or 1),
                "mscale": given.get("mscale"),
                "mscale_all_dim": given.get("mscale_all_dim"),
                "attention_factor": given.get("attention_factor"),
                "truncate": bool(given.get("truncate", True)),
            }
        return cls(**settings)

    def softmax_scale(self, head_dim: int) -> float:
        """Factor of the attention scores; `head_dim` is nope + rope."""
        scale = head_dim**-0.5
        if self.rope_type == "yarn" and self.mscale_all_dim:
            scale *= _mscale(self.factor, self.mscale_all_dim) ** 2
        return scale

    def attention_scaling(self) -> float:
        """Factor of cos and sin."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return float(self.attention_factor)
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)

    def inverse_frequencies(self, dim: int) -> torch.Tensor:
        """Float32 [dim / 2], radians per position."""
        exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        plain = 1.0 / self.rope_theta**exponent
        if self.rope_type != "yarn":
            return plain
        low, high = (self._turns_to_dim(turns, dim) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        return (plain / self.factor) * ramp + plain * (1 - ramp)

    def _turns_to_dim(self, turns: float, dim: int) -> float:
        """The dimension that turns `turns` times within the original context."""
        span = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(self.rope_theta))


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class RotaryTable:
    """cos and sin by position, float32 [capacity, dim / 2], grown when a later position is asked for."""

    def __init__(self, settings: RopeSettings, dim: int, device: torch.device) -> None:
        self._scaling = settings.attention_scaling()
        self._frequencies = settings.inverse_frequencies(dim).to(device)
        self._cos = self._sin = torch.empty(0, dim // 2, device=device)

    def upto(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of the positions 0 .. at least length - 1."""
        if length > len(self._cos):
            capacity = max(length, 2 * len(self._cos), 512)
            position = torch.arange(capacity, dtype=torch.float32, device=self._frequencies.device)
            angle = position[:, None] * self._frequencies
            self._cos, self._sin = angle.cos() * self._scaling, angle.sin() * self._scaling
        return self._cos, self._sin


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleave: bool) -> torch.Tensor:
    """Rotate the pairs of the last axis; the result has the first members, then the second ones.

    Pairs are (0, 1), (2, 3), ... when `interleave`, else (0, D/2), (1, D/2 + 1), ... Queries and keys
    are permuted alike, so their products do not change.
    """
    if interleave:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
