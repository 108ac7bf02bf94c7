"""How many bytes a model needs: weights by part and the key-value cache.  Floor 0.

`ModelMemory` is what `ModelSpec.memory` returns. It counts what must be stored: weights and cache.
It does not know activations, engine buffers, replicas or fragmentation: those belong to a machine
and an engine, not to a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from moelab.domain.model_tensors import PARTS
from moelab.domain.units import format_bytes, format_gb, format_gib
from moelab.domain.weight_formats import cache_bytes

if TYPE_CHECKING:
    import pandas

    from moelab.domain.model import ModelSpec

# DeepSeek's own inference code keeps the indexer's keys as e4m3 with a float32 scale per 128 values.
INDEXER_FORMAT = "fp8_g128"


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of one model at one context, batch and choice of formats. All sizes in bytes.

    `bytes_of_part` holds every part of `PARTS` that the model has, plus `kv_cache` and, for DSA
    models, `indexer_keys`. `formats` says what was counted for each of them.
    """

    model: str
    context: int
    batch: int
    expanded: bool
    max_position_embeddings: int | None
    bytes_of_part: Mapping[str, int]
    formats: Mapping[str, str]

    @property
    def weight_bytes(self) -> int:
        return sum(size for part, size in self.bytes_of_part.items() if part in PARTS)

    @property
    def cache_bytes(self) -> int:
        return self.total_bytes - self.weight_bytes

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_of_part.values())

    @property
    def beyond_context(self) -> bool:
        """Is the context longer than the model was made for."""
        return self.max_position_embeddings is not None and self.context > self.max_position_embeddings

    def to_frame(self) -> pandas.DataFrame:
        """One row per part: part, format, bytes, gb, share of the total."""
        import pandas

        total = self.total_bytes or 1
        return pandas.DataFrame(
            [
                {"part": part, "format": self.formats[part], "bytes": size, "gb": size / 1e9, "share": size / total}
                for part, size in self.bytes_of_part.items()
            ]
        )

    def __str__(self) -> str:
        return (
            f"{self.model}: {format_gb(self.total_bytes)} ({format_gib(self.total_bytes)}) = weights "
            f"{format_gb(self.weight_bytes)} + cache {format_gb(self.cache_bytes)} at context "
            f"{self.context}, batch {self.batch}"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(part)}</td><td>{escape(self.formats[part])}</td>"
            f"<td style='text-align:right'>{format_bytes(size)}</td></tr>"
            for part, size in self.bytes_of_part.items()
        )
        note = (
            f"<p>The context is longer than the model's own {self.max_position_embeddings}.</p>"
            if self.beyond_context
            else ""
        )
        return (
            f"<p>{escape(str(self))}</p>{note}<table><thead><tr><th>part</th><th>format</th><th>bytes</th></tr>"
            f"</thead><tbody>{rows}</tbody></table>"
        )


def cache_bytes_of_part(
    spec: ModelSpec, context: int, batch: int, cache_format: str, expanded: bool, indexer_format: str
) -> dict[str, int]:
    """Bytes of `kv_cache` and, for DSA models, `indexer_keys`, for `batch` sequences of `context` tokens.

    - MLA keeps one latent row (kv_lora_rank) and one rope row (qk_rope_head_dim) per token and
      layer, keys and values at once: no factor 2. `expanded` counts what an engine holds that keeps
      per-head keys (nope + rope) and values instead, 36 to 71 times more.
    - GQA keeps num_key_value_heads rows of head_dim for keys and as many for values; a sliding layer
      never keeps more than `sliding_window` tokens. It has no latent, so `expanded` changes nothing.
    - The DSA indexer keeps one row of index_head_dim per token in each of its own ("full") layers.
    """
    for name, value, least in (("context", context, 0), ("batch", batch, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}; pass tokens and sequences")
    num_layers = spec.num_hidden_layers
    if spec.kv_lora_rank is not None:
        rope = spec.qk_rope_head_dim or 0
        if expanded:
            key, value = (spec.qk_nope_head_dim or 0) + rope, spec.v_head_dim or 0
            row = spec.num_attention_heads * (cache_bytes(cache_format, key) + cache_bytes(cache_format, value))
        else:
            row = cache_bytes(cache_format, spec.kv_lora_rank) + cache_bytes(cache_format, rope)
        layer_tokens = num_layers * context
    else:
        row = 2 * spec.num_key_value_heads * cache_bytes(cache_format, spec.head_dim or 0)
        num_sliding = spec.layer_types.count("sliding_attention") if spec.layer_types else 0
        kept = min(context, spec.sliding_window) if spec.sliding_window is not None else context
        layer_tokens = num_sliding * kept + (num_layers - num_sliding) * context
    sizes = {"kv_cache": batch * layer_tokens * row}
    if spec.indexer_types is not None:
        key_row = cache_bytes(indexer_format, spec.index_head_dim or 0)
        sizes["indexer_keys"] = batch * spec.num_indexer_layers * context * key_row
    return sizes
