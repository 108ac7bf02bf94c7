"""LatentAttention: multi-head latent attention with absorbed projections.

DeepSeek-V2 (2024), section 2.1.2: keys and values of all heads come from one latent vector per
token, so the cache holds only that vector (after its norm) and one rotated key. W_UK is applied to
the query and W_UV to the weighted sum of latents, so keys and values of heads are never formed.
Two norms (q_a, kv_a) always use eps 1e-6, whatever `rms_norm_eps` says: transformers and the
released models do. It does not know layers, files or who owns the cache. Floor 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from moelab.engine.dense import Linear, rms_norm
from moelab.engine.rope import RotaryTable, rotate

LATENT_NORM_EPS = 1e-6
MAX_SCORES = 1 << 26  # scores held at once (float32: 256 MiB); longer chunks go in blocks of queries


@dataclass
class StepPositions:
    """Where the tokens of one forward pass stand; made once, used by every layer.

    Rows `[row, row + B)` of the cache, `num_queries` (Q) new tokens each, from `starts` on; `length` is the longest row
    after the step. Tensors are made when first asked for: a native decode step asks for none.
    """

    row: int
    starts: tuple[int, ...]
    num_queries: int
    length: int
    rotary: RotaryTable
    device: torch.device
    dtype: torch.dtype

    @property
    def start(self) -> int | None:
        """The first position when B = 1: a slice is cheaper than an index."""
        return self.starts[0] if len(self.starts) == 1 else None

    @cached_property
    def positions(self) -> torch.Tensor:
        """int64 [B, Q]."""
        offsets = torch.arange(self.num_queries, device=self.device)
        return torch.tensor(self.starts, device=self.device)[:, None] + offsets

    @cached_property
    def cos(self) -> torch.Tensor:
        """float32 [B, Q, rope / 2]; `sin` likewise."""
        return self._rows(self.rotary.upto(self.length)[0])

    @cached_property
    def sin(self) -> torch.Tensor:
        return self._rows(self.rotary.upto(self.length)[1])

    def _rows(self, table: torch.Tensor) -> torch.Tensor:
        return table[self.positions] if self.start is None else table[None, self.start : self.length]

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """[B, Q, length] with 0 and -inf, or None where every token sees the whole row."""
        if self.num_queries == 1 and min(self.starts) == max(self.starts):
            return None
        hidden = torch.arange(self.length, device=self.device) > self.positions[..., None]
        return torch.zeros(hidden.shape, device=self.device, dtype=self.dtype).masked_fill_(hidden, float("-inf"))


@dataclass(frozen=True)
class LatentAttention:
    """Weights of one layer. `a_proj` is q_a_proj (or q_proj) and kv_a_proj_with_mqa, one below the other.

    H -> q_lora_rank (or heads * (nope + rope)) + kv_rank + rope.
    """

    num_heads: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    kv_rank: int
    softmax_scale: float
    interleave: bool
    a_proj: Linear
    q_norm: torch.Tensor | None  # None: no q_lora, `a_proj` gives the queries
    q_b_proj: Linear | None
    kv_norm: torch.Tensor
    key_up: Linear  # W_UK, [heads, T, nope] -> [heads, T, kv_rank]
    value_up: Linear  # W_UV, [heads, T, kv_rank] -> [heads, T, v]
    o_proj: Linear

    def __call__(self, x: torch.Tensor, at: StepPositions, cache: torch.Tensor) -> torch.Tensor:
        """x [B, Q, H] -> [B, Q, H]; writes the new latents into `cache` [rows, capacity, kv_rank + rope]."""
        batch, num_queries, _ = x.shape
        projected = self.a_proj(x)
        q, latent, k_rope = projected.split(
            (projected.shape[-1] - self.kv_rank - self.rope_dim, self.kv_rank, self.rope_dim), dim=-1
        )
        if self.q_b_proj is not None and self.q_norm is not None:
            q = self.q_b_proj(rms_norm(q, self.q_norm, LATENT_NORM_EPS))
        latent = rms_norm(latent, self.kv_norm, LATENT_NORM_EPS)
        k_rope = rotate(k_rope, at.cos, at.sin, self.interleave).to(x.dtype)
        keys = self._remember(torch.cat((latent, k_rope), dim=-1), at, cache)

        q_nope, q_rope = q.view(batch * num_queries, self.num_heads, -1).split((self.nope_dim, self.rope_dim), dim=-1)
        cos, sin = at.cos.flatten(0, 1)[:, None], at.sin.flatten(0, 1)[:, None]
        q_rope = rotate(q_rope, cos, sin, self.interleave).to(x.dtype)
        q_latent = self.key_up(q_nope.transpose(0, 1)).transpose(0, 1)
        query = torch.cat((q_latent, q_rope), dim=-1).view(batch, num_queries, self.num_heads, -1)

        mixed = self._attend(query, keys, at.mask)  # [B, Q, heads, kv_rank]
        by_head = mixed.reshape(batch * num_queries, self.num_heads, -1).transpose(0, 1)
        values = self.value_up(by_head).transpose(0, 1)
        return self.o_proj(values.reshape(batch, num_queries, -1))

    def _remember(self, entry: torch.Tensor, at: StepPositions, cache: torch.Tensor) -> torch.Tensor:
        """Write [B, Q, width] into the cache; return the rows' keys [B, length, width]."""
        batch, num_queries, _ = entry.shape
        if at.start is not None:
            cache[at.row, at.start : at.start + num_queries] = entry[0]
        else:
            rows = torch.arange(at.row, at.row + batch, device=entry.device)
            cache[rows[:, None], at.positions] = entry
        return cache[at.row : at.row + batch, : at.length]

    def _attend(self, query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        batch, num_queries, num_heads, _ = query.shape
        length = keys.shape[1]
        block = max(1, MAX_SCORES // (batch * num_heads * length))
        parts = []
        for start in range(0, num_queries, block):
            part = query[:, start : start + block].flatten(1, 2)
            scores = (part @ keys.transpose(1, 2)).mul_(self.softmax_scale)
            if mask is not None:
                by_query = scores.view(batch, -1, num_heads, length) + mask[:, start : start + block, None]
                scores = by_query.flatten(1, 2)
            weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
            parts.append((weights @ keys[..., : self.kv_rank]).view(batch, -1, num_heads, self.kv_rank))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
