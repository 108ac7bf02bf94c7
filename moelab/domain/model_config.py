"""From an HF config.json to the fields of `ModelSpec`, one name per meaning.  Floor 0.

`normalise` knows the other names of a field (`ALIASES`), nested text configs (K2.5), the families'
defaults and their special fields. A config that is incomplete or contradicts itself is refused by
field name (expected, got, fix), never repaired. Rope, norm epsilons and activation constants are
not read: the engine needs them, sizes do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moelab.domain.model_families import ALIASES, FAMILIES, FAMILY_OF_MODEL_TYPE, Family
from moelab.domain.model_quantization import read_quantization

_MLA_FIELDS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_INDEXER_FIELDS = ("index_n_heads", "index_head_dim", "index_topk")
_LAYER_KINDS = {"sliding_attention", "full_attention"}


def refusal(model: str, field: str, expected: str, got: object, fix: str) -> ValueError:
    """The one form of this module's errors: field, expected, got, fix."""
    return ValueError(f"{model} config: {field}: expected {expected}, got {got}; {fix}")


def text_config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's config, with what its wrapper holds for it (K2.5: nested `text_config`).

    `quantization_config` and `tie_word_embeddings` may lie in either; given in both, they must agree.
    """
    if "text_config" not in config:
        return dict(config)
    inner = config["text_config"]
    if not isinstance(inner, Mapping):
        raise refusal("model", "text_config", "an object", type(inner).__name__, "pass a whole config.json")
    merged = dict(inner)
    merged.setdefault("model_type", config.get("model_type"))
    for field in ("quantization_config", "tie_word_embeddings"):
        outer = config.get(field)
        if outer is None:
            continue
        if merged.get(field) not in (None, outer):
            raise refusal(
                str(config.get("model_type")),
                field,
                "one value in the config and its text_config",
                f"{outer!r} and {merged[field]!r}",
                "keep the one that the checkpoint was written with",
            )
        merged[field] = outer
    return merged


class _Reader:
    """Typed access to one config; every failure names the field."""

    def __init__(self, config: Mapping[str, Any], model: str) -> None:
        self.config = config
        self.model = model

    def value(self, field: str) -> Any:
        """The value under `field` or its other names; None when absent or null."""
        given = {
            name: self.config[name] for name in (field, *ALIASES.get(field, ())) if self.config.get(name) is not None
        }
        if len({repr(value) for value in given.values()}) > 1:
            raise refusal(self.model, field, "one value under all its names", given, "remove the wrong one")
        return next(iter(given.values()), None)

    def integer(self, field: str) -> int:
        value = self.value(field)
        if isinstance(value, bool) or not isinstance(value, int):
            got = "nothing" if value is None else repr(value)
            raise refusal(self.model, field, "an integer", got, "pass the model's whole config.json")
        return value

    def optional_integer(self, field: str, default: int | None = None) -> int | None:
        return default if self.value(field) is None else self.integer(field)


def normalise(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `ModelSpec` fields of an HF config (nested or not). ValueError by field name."""
    text = text_config_of(config)
    model_type = text.get("model_type")
    if model_type not in FAMILY_OF_MODEL_TYPE:
        raise refusal(
            "model",
            "model_type",
            f"one of {', '.join(FAMILY_OF_MODEL_TYPE)}",
            repr(model_type),
            "add the family to FAMILIES in moelab/domain/model_families.py",
        )
    family = FAMILIES[FAMILY_OF_MODEL_TYPE[model_type]]
    read = _Reader(text, model_type)
    fields: dict[str, Any] = {"model_type": model_type}
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "n_routed_experts"):
        fields[field] = read.integer(field)
    fields["num_experts_per_tok"] = read.integer("num_experts_per_tok")
    fields["routed_expert_hidden_size"] = read.optional_integer("routed_expert_hidden_size")
    fields["n_shared_experts"] = read.integer("n_shared_experts") if family.has_shared_experts else 0
    fields |= _mlp_fields(read, family)
    fields |= _attention_fields(read, family, fields)
    fields |= _router_fields(read, family)
    fields |= read_quantization(text, model_type)
    absent = {
        "indexer": not family.has_indexer,
        "dense_mlp": fields["intermediate_size"] is None,
        "shared_experts": not fields["n_shared_experts"],
    }
    fields["quantized_parts"] = tuple(part for part in fields["quantized_parts"] if not absent.get(part, False))
    fields["tie_word_embeddings"] = bool(read.value("tie_word_embeddings"))
    fields["max_position_embeddings"] = read.optional_integer("max_position_embeddings")
    fields["num_nextn_predict_layers"] = read.optional_integer("num_nextn_predict_layers", 0)
    fields["hidden_act"] = read.value("hidden_act") or "silu"
    limit = read.value("swiglu_limit")
    fields["swiglu_limit"] = family.defaults.get("swiglu_limit") if limit is None else limit
    fields["sizes_exact"] = family.why_inexact is None and text.get("sizes_exact", True)
    return fields


def _mlp_fields(read: _Reader, family: Family) -> dict[str, Any]:
    config, model = read.config, read.model
    num_layers = read.integer("num_hidden_layers")
    # A field that changes the tensors but that no released model uses is refused, not ignored.
    for field, only in (("moe_layer_freq", 1), ("mlp_bias", False), ("shared_intermediate_size", 0)):
        if config.get(field) not in (None, only):
            raise refusal(model, field, repr(only), repr(config[field]), "only this value is counted exactly")
    first_k_dense = read.integer("first_k_dense_replace") if family.has_first_k_dense else 0
    step = read.optional_integer("decoder_sparse_step", 1)
    mlp_only = tuple(config.get("mlp_only_layers") or ())
    kinds = config.get("mlp_layer_types")
    expected = ["dense"] * first_k_dense + ["sparse"] * (num_layers - first_k_dense)
    if family.has_first_k_dense and kinds is not None and list(kinds) != expected:
        raise refusal(
            model,
            "mlp_layer_types",
            f"{first_k_dense} dense then {num_layers - first_k_dense} sparse, as first_k_dense_replace says",
            f"{len(kinds)} layers, {list(kinds).count('dense')} dense",
            "make the two fields agree",
        )
    fields: dict[str, Any] = {
        "first_k_dense_replace": first_k_dense,
        "decoder_sparse_step": step,
        "mlp_only_layers": mlp_only,
    }
    if family.expert_size_field == "moe_intermediate_size":
        fields["moe_intermediate_size"] = read.integer("moe_intermediate_size")
        has_dense = first_k_dense > 0 or bool(mlp_only) or step != 1
        # Qwen3 states a dense size that no layer uses: kept out, so that equal models are equal.
        fields["intermediate_size"] = read.integer("intermediate_size") if has_dense else None
    else:
        sizes = {
            name: config[name]
            for name in ("intermediate_size", "moe_intermediate_size")
            if config.get(name) is not None
        }
        if len(set(sizes.values())) > 1:
            raise refusal(model, "moe_intermediate_size", "the value of intermediate_size", sizes, "remove one")
        fields["moe_intermediate_size"] = read.integer(next(iter(sizes), "intermediate_size"))
        fields["intermediate_size"] = None
    return fields


def _attention_fields(read: _Reader, family: Family, known: Mapping[str, Any]) -> dict[str, Any]:
    config, model = read.config, read.model
    defaults = family.defaults
    fields: dict[str, Any] = {"attention_bias": bool(config.get("attention_bias", defaults.get("attention_bias")))}
    heads = known["num_attention_heads"]
    if family.attention is None:
        fields["num_key_value_heads"] = read.optional_integer("num_key_value_heads", heads)
        return fields
    if family.attention == "mla":
        for field in _MLA_FIELDS:
            fields[field] = read.integer(field)
        if "q_lora_rank" not in config:
            raise refusal(model, "q_lora_rank", "an integer or null", "nothing", "pass the model's whole config.json")
        fields["q_lora_rank"] = read.optional_integer("q_lora_rank")
        fields["num_key_value_heads"] = heads  # every head has its own expanded key and value
        stated = config.get("qk_head_dim")
        both = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]
        if stated is not None and stated != both:
            raise refusal(
                model, "qk_head_dim", f"{both} (qk_nope_head_dim + qk_rope_head_dim)", stated, "make them agree"
            )
        # HF's head_dim is the rope slice in one release and something else in another: left out.
        return fields | _indexer_fields(read, family)
    fields["num_key_value_heads"] = read.integer("num_key_value_heads")
    head_dim = read.optional_integer("head_dim", family.default_head_dim)
    if head_dim is None and known["hidden_size"] % heads:
        raise refusal(
            model, "head_dim", f"a value, since {known['hidden_size']} / {heads} is not whole", "nothing", "state it"
        )
    fields["head_dim"] = head_dim if head_dim is not None else known["hidden_size"] // heads
    stated_norm = config.get("use_qk_norm")
    if family.qk_norm_is_optional:
        fields["use_qk_norm"] = bool(stated_norm)
    else:
        fields["use_qk_norm"] = family.qk_norm is not None
        if stated_norm is not None and bool(stated_norm) != fields["use_qk_norm"]:
            raise refusal(
                model, "use_qk_norm", str(fields["use_qk_norm"]), stated_norm, "this family has no other form"
            )
    return fields | _window_fields(read, known["num_hidden_layers"])


def _window_fields(read: _Reader, num_layers: int) -> dict[str, Any]:
    """Sliding windows: gpt-oss alternates by `layer_types`, Mixtral and Qwen3 slide everywhere or nowhere."""
    config = read.config
    if read.model == "gpt_oss" and "sliding_window" not in config:
        raise refusal(read.model, "sliding_window", "an integer or null", "nothing", "pass the whole config.json")
    window = read.optional_integer("sliding_window")
    if config.get("use_sliding_window") is False:
        window = None
    kinds = config.get("layer_types")
    if kinds is not None and not set(kinds) <= _LAYER_KINDS:
        raise refusal(read.model, "layer_types", str(sorted(_LAYER_KINDS)), sorted(set(kinds)), "not counted here")
    if window is None:
        if kinds is not None and "sliding_attention" in kinds:
            raise refusal(read.model, "sliding_window", "an integer, layer_types has sliding layers", None, "state it")
        return {"sliding_window": None, "layer_types": None}
    if kinds is None:
        alternate = read.model == "gpt_oss"
        kinds = ["full_attention" if alternate and layer % 2 else "sliding_attention" for layer in range(num_layers)]
    return {"sliding_window": window, "layer_types": tuple(kinds)}


def _indexer_fields(read: _Reader, family: Family) -> dict[str, Any]:
    """The DSA indexer: own keys in "full" layers; "shared" layers reuse the choice of the one before.

    Schedule as in transformers' GlmMoeDsaConfig: `indexer_types`, else `index_topk_pattern` (F, S),
    else every `index_topk_freq` layers from `index_skip_topk_offset`.
    """
    if not family.has_indexer:
        return {}
    config = read.config
    num_layers = read.integer("num_hidden_layers")
    fields: dict[str, Any] = {field: read.integer(field) for field in _INDEXER_FIELDS}
    kinds = config.get("indexer_types")
    pattern = config.get("index_topk_pattern")
    if kinds is None and pattern is not None:
        kinds = [{"F": "full", "S": "shared"}.get(kind, kind) for kind in pattern]
    if kinds is None:
        every = max(read.optional_integer("index_topk_freq") or 1, 1)
        offset = read.optional_integer("index_skip_topk_offset", 2) or 0
        kinds = ["full" if max(layer - offset + 1, 0) % every == 0 else "shared" for layer in range(num_layers)]
    fields["indexer_types"] = tuple(kinds)
    return fields


def _router_fields(read: _Reader, family: Family) -> dict[str, Any]:
    config = read.config
    defaults = family.defaults
    routing_bias = config.get("use_routing_bias")
    stated_norm = read.value("norm_topk_prob")
    scale = read.value("routed_scaling_factor")
    return {
        "use_routing_bias": family.router_bias is not None if routing_bias is None else bool(routing_bias),
        "scoring_func": read.value("scoring_func") or defaults.get("scoring_func"),
        "topk_method": read.value("topk_method") or defaults.get("topk_method"),
        "norm_topk_prob": bool(defaults.get("norm_topk_prob", False) if stated_norm is None else stated_norm),
        "routed_scaling_factor": float(defaults.get("routed_scaling_factor", 1.0) if scale is None else scale),
        "n_group": read.optional_integer("n_group", defaults.get("n_group", 1)),
        "topk_group": read.optional_integer("topk_group", defaults.get("topk_group", 1)),
    }
