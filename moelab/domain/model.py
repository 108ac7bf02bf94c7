"""ModelSpec: the shape of a mixture-of-experts model, exact to the parameter and to the byte.  Floor 0.

Read from an HF config (`ModelSpec.from_hf_config`) or from a preset (`ModelSpec.preset`); fields
carry the names of HF's config, one name per meaning for all families. Formulae and checked totals:
facts/models_and_sizing.md sections 1 and 2; tensor shapes: transformers 5.23 (`model_tensors.py`).

It does not know weights, rope or norm epsilons, machines or speed. Multi-token-prediction layers are
noted (`num_nextn_predict_layers`) and never counted, nor are vision towers. A family whose tensors
are not all known here has `sizes_exact = False`: its experts are exact, everything else about its
size is refused by name rather than guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from moelab.domain import presets as preset_files
from moelab.domain.model_config import normalise
from moelab.domain.model_families import FAMILIES
from moelab.domain.model_fields import ModelFields
from moelab.domain.model_memory import INDEXER_FORMAT, ModelMemory, cache_bytes_of_part
from moelab.domain.model_tensors import PARTS, Tensor, expert_tensors, tensors_of
from moelab.domain.units import format_params
from moelab.domain.weight_formats import weight_format

if TYPE_CHECKING:
    import pandas


class ModelSpec(ModelFields):
    """One model. L = num_moe_layers, E = n_routed_experts, K = num_experts_per_tok, H = expert_hidden_size,
    I = moe_intermediate_size. Fields: `ModelFields`.
    """

    # --- where a spec comes from ---

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any] | str | Path, name: str | None = None) -> ModelSpec:
        """From an HF config: the parsed dict, a config.json, or the folder that holds one.

        `name` defaults to the last part of `_name_or_path`, else to the folder's (or file's) name. ValueError names the
        field that is unknown, missing or contradictory; FileNotFoundError names the file.
        """
        where = ""
        if not isinstance(config, Mapping):
            path = Path(config)
            path = path / "config.json" if path.is_dir() else path
            if not path.is_file():
                raise FileNotFoundError(f"{path}: expected a model's config.json, got no such file; pass its folder")
            where = path.resolve().parent.name if path.name == "config.json" else path.stem
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: expected JSON, got {error}; fetch the file again") from error
            if not isinstance(config, dict):
                raise ValueError(f"{path}: expected a JSON object, got a {type(config).__name__}; pass config.json")
        stated = str(config.get("_name_or_path") or where).rstrip("/").rsplit("/", 1)[-1]
        return cls._validated(normalise(config) | {"name": name or stated})

    @classmethod
    def preset(cls, name: str) -> ModelSpec:
        """A model that ships as a preset, by the name of its file (`presets()` lists them)."""
        config = preset_files.read(name)
        provenance = {field: config[field] for field in ("source", "verified", "notes")}
        return cls._validated(normalise(config) | {"name": name} | provenance)

    @classmethod
    def _validated(cls, fields: Mapping[str, Any]) -> ModelSpec:
        """Build, turning pydantic's report into one plain line."""
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            text = first["msg"].removeprefix("Value error, ")
            if first["loc"]:
                at = ".".join(str(step) for step in first["loc"])
                text = f"{at}: {text}, got {first['input']!r}; correct the config"
            raise ValueError(f"{fields['model_type']} config: {text}") from None

    # --- layers and counts ---

    @property
    def label(self) -> str:
        """For error messages: `kimi_k2 (60 x 384)`, MoE layers x experts."""
        return f"{self.model_type} ({self.num_moe_layers} x {self.n_routed_experts})"

    @property
    def num_moe_layers(self) -> int:
        return len(self.model_layer_of_layer)

    @property
    def num_indexer_layers(self) -> int:
        """Layers with a DSA indexer of their own; 0 for other models."""
        return self.indexer_types.count("full") if self.indexer_types else 0

    @property
    def expert_hidden_size(self) -> int:
        """H of a routed expert: hidden_size, or the latent size that the experts of Kimi-K3 work in."""
        return self.routed_expert_hidden_size or self.hidden_size

    @property
    def expert_shapes(self) -> dict[str, tuple[int, int]]:
        """Projection -> (rows, columns): gate_proj and up_proj [I, H], down_proj [H, I]."""
        return {one.name: (one.rows, one.columns) for one in expert_tensors(self) if one.kind == "matrix"}

    @property
    def expert_params(self) -> int:
        """Parameters of one routed expert, biases included. Exact for every family."""
        return sum(one.params for one in expert_tensors(self))

    @property
    def routed_params(self) -> int:
        """Parameters of all routed experts. Exact for every family."""
        return self.num_moe_layers * self.n_routed_experts * self.expert_params

    @property
    def routed_active_params(self) -> int:
        """Parameters of the routed experts that one token uses."""
        return self.num_moe_layers * self.num_experts_per_tok * self.expert_params

    @property
    def params_of_part(self) -> dict[str, int]:
        """Parameters of each part that the model has, in the order of PARTS."""
        return self._sum_by_part("params_of_part", lambda tensor: tensor.params)

    @property
    def total_params(self) -> int:
        """All stored parameters of the text model, the router's correction bias included, MTP excluded."""
        return sum(self._parts("total_params").values())

    @property
    def non_routed_params(self) -> int:
        """Everything but the routed experts, embedding included."""
        return sum(self._parts("non_routed_params").values()) - self.routed_params

    @property
    def always_active_params(self) -> int:
        """What every token reads: total - routed - embedding. A tied embedding is read as lm_head, so it stays."""
        return self.non_routed_params - (0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size)

    @property
    def active_params(self) -> int:
        """Parameters that one token uses, without the embedding table (a token looks up one row)."""
        return self.always_active_params + self.routed_active_params

    @property
    def active_params_with_embedding(self) -> int:
        """Parameters that one token uses, embedding table counted whole, as many model cards do."""
        return self.non_routed_params + self.routed_active_params

    # --- bytes ---

    def expert_bytes(self, format_name: str) -> int:
        """Bytes of one routed expert in a weight format, biases included. Exact for every family."""
        return sum(one.bytes_in(format_name) for one in expert_tensors(self))

    @property
    def native_formats(self) -> dict[str, str]:
        """Part -> weight format of the release: its quantised parts, the rest bf16."""
        return {
            part: self.quant_format if part in self.quantized_parts else "bf16"
            for part in self._parts("native_formats")
        }

    def formats_of_part(self, formats: str | Mapping[str, str] = "native") -> dict[str, str]:
        """Every part's weight format. `formats`: "native", one name for all, or part -> format.

        A mapping may leave parts out: those keep the release's format. ValueError for an unknown
        part or format.
        """
        chosen = self.native_formats
        if isinstance(formats, str):
            if formats != "native":
                chosen = dict.fromkeys(chosen, formats)
        else:
            for part in formats:
                if part not in PARTS:
                    raise ValueError(
                        f"formats: expected parts among {', '.join(PARTS)}, got {part!r}; correct the name"
                    )
            chosen |= {part: formats[part] for part in chosen if part in formats}
        for name in chosen.values():
            weight_format(name)
        return chosen

    def bytes_of_part(self, formats: str | Mapping[str, str] = "native") -> dict[str, int]:
        """Weight bytes of each part in the given formats (see `formats_of_part`)."""
        chosen = self.formats_of_part(formats)
        return self._sum_by_part("bytes_of_part", lambda tensor: tensor.bytes_in(chosen[tensor.part]))

    def weight_bytes(self, formats: str | Mapping[str, str] = "native") -> int:
        """Bytes of all weights in the given formats (see `formats_of_part`)."""
        return sum(self.bytes_of_part(formats).values())

    def kv_cache_bytes(
        self,
        context: int,
        batch: int = 1,
        format: str = "bf16",
        expanded: bool = False,
        indexer_format: str = INDEXER_FORMAT,
    ) -> int:
        """Bytes of the cache of `batch` sequences of `context` tokens, indexer keys included.

        `format` and `indexer_format` are names of CACHE_FORMATS. What is kept per attention kind, and
        what `expanded` means: `model_memory.cache_bytes_of_part`.
        """
        self._require_exact("kv_cache_bytes")
        return sum(cache_bytes_of_part(self, context, batch, format, expanded, indexer_format).values())

    def memory(
        self,
        context: int,
        batch: int = 1,
        formats: str | Mapping[str, str] = "native",
        kv_format: str = "bf16",
        expanded: bool = False,
        indexer_format: str = INDEXER_FORMAT,
    ) -> ModelMemory:
        """Weights and cache, part by part, in bytes. Activations and engine buffers are not in it."""
        chosen = self.formats_of_part(formats)
        cache = cache_bytes_of_part(self, context, batch, kv_format, expanded, indexer_format)
        return ModelMemory(
            model=self.name or self.label,
            context=context,
            batch=batch,
            expanded=expanded,
            max_position_embeddings=self.max_position_embeddings,
            bytes_of_part=self.bytes_of_part(chosen) | cache,
            formats=chosen | {"kv_cache": kv_format} | ({"indexer_keys": indexer_format} if len(cache) > 1 else {}),
        )

    # --- identity and display ---

    def to_frame(self) -> pandas.DataFrame:
        """One row per part: part, params, native_format, native_bytes."""
        import pandas

        formats, sizes = self.native_formats, self.bytes_of_part()
        return pandas.DataFrame(
            [
                {"part": part, "params": params, "native_format": formats[part], "native_bytes": sizes[part]}
                for part, params in self.params_of_part.items()
            ]
        )

    def __str__(self) -> str:
        size = f"{format_params(self.total_params)} parameters" if self.sizes_exact else "size not known exactly"
        return f"{self.name or self.model_type}: {self.label}, top-{self.num_experts_per_tok}, {size}"

    def _repr_html_(self) -> str:
        if not self.sizes_exact:
            return f"<p>{escape(str(self))}</p>"
        return f"<p>{escape(str(self))}</p>{self.to_frame().to_html(index=False)}"

    # --- inside ---

    def _require_exact(self, what: str) -> None:
        if not self.sizes_exact:
            why = FAMILIES[self.family].why_inexact or "its preset says so"
            raise ValueError(
                f"{what} of {self.name or self.label}: expected a model whose tensors are all known "
                f"(sizes_exact), got {self.family}: {why}; use expert_params, expert_bytes or routed_params, "
                "which are exact, or describe the family in moelab/domain/model_tensors.py"
            )

    def _parts(self, what: str) -> dict[str, int]:
        return self._sum_by_part(what, lambda tensor: tensor.params)

    def _sum_by_part(self, what: str, size_of: Callable[[Tensor], int]) -> dict[str, int]:
        self._require_exact(what)
        sizes: dict[str, int] = {}
        tensors: tuple[Tensor, ...] = tensors_of(self)
        for part in PARTS:
            of_part = [tensor for tensor in tensors if tensor.part == part]
            if of_part:
                sizes[part] = sum(size_of(tensor) for tensor in of_part)
        return sizes


def presets() -> list[str]:
    """Names of the models that ship as presets, sorted."""
    return preset_files.names()
