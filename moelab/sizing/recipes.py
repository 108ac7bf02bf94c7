"""Whole-model weight recipes: which format each tensor gets, and so the bytes of each part.  Floor 2.

A recipe is what a file name says (native, bf16, Q4_K_M, UD-Q2_K_XL): a choice tensor by tensor. Two kinds, and the
record says which: `exact` recipes are computed tensor by tensor; nominal ones apply published bits per weight to the
routed experts, because their authors choose by measurements that are not published as a rule.

Q4_K_M is llama-quantize's rule: Q4_K, but Q6_K for the head and for down_proj (and v_proj) of the layers that its
`use_more_bits` names: the first and last eighth and every third between; rows that are no multiple of 256 fall
back to Q5_0 and Q8_0; router, norms and biases stay float32. Kimi K2: 577.9 GiB, published 578.57.

It does not know file headers (megabytes), vision towers, or the second copy of kv_b_proj that some GGUF files hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moelab.domain.model import ModelSpec
from moelab.domain.model_tensors import PARTS, Tensor, tensors_of
from moelab.domain.weight_formats import WEIGHT_FORMATS

BytesOfPart = Callable[[ModelSpec], dict[str, int]]

UD_Q2_EXPERT_BITS = 2.58  # of the routed experts of UD-Q2_K_XL: 340 GB published for Kimi K2.6, 8.5 bits for the rest


@dataclass(frozen=True)
class Recipe:
    """One recipe. `bytes_of_part(spec)` raises ValueError where the model cannot be stored so."""

    name: str
    bytes_of_part: BytesOfPart
    exact: bool
    source: str

    def weight_bytes(self, spec: ModelSpec) -> int:
        """Bytes of all weights."""
        return sum(self.bytes_of_part(spec).values())

    def expert_bytes(self, spec: ModelSpec) -> float:
        """Mean bytes of one routed expert (layers differ in Q4_K_M)."""
        return self.bytes_of_part(spec)["routed_experts"] / (spec.num_moe_layers * spec.n_routed_experts)


def recipe(name: str) -> Recipe:
    """The recipe called `name`, or every matrix in the weight format of that name. ValueError lists them."""
    if name in RECIPES:
        return RECIPES[name]
    if name in WEIGHT_FORMATS:
        return Recipe(name, lambda spec: spec.bytes_of_part(name), True, WEIGHT_FORMATS[name].source)
    raise ValueError(
        f"format: expected one of {', '.join(RECIPES)} or a weight format ({', '.join(WEIGHT_FORMATS)}), got {name!r}"
    )


def weight_bytes_of_recipe(spec: ModelSpec) -> dict[str, int]:
    """Bytes of the whole model in every recipe that can hold it."""
    sizes = {}
    for name, one in RECIPES.items():
        try:
            sizes[name] = one.weight_bytes(spec)
        except ValueError:  # the recipe cannot hold this model: it has no size, and asking for it by name says why
            if not spec.sizes_exact:
                raise
    return sizes


def use_more_bits(layer: int, num_layers: int) -> bool:
    """Does llama-quantize give this layer's down_proj more bits in its mixed ("M") files."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _experts_and_rest(experts: str, rest: str) -> BytesOfPart:
    def bytes_of_part(spec: ModelSpec) -> dict[str, int]:
        return spec.bytes_of_part({part: experts if part == "routed_experts" else rest for part in PARTS})

    return bytes_of_part


def _native_int4(experts: str, rest: str) -> BytesOfPart:
    """For models whose experts are released in int4: those files keep them as they are."""
    inner = _experts_and_rest(experts, rest)

    def bytes_of_part(spec: ModelSpec) -> dict[str, int]:
        if spec.native_formats["routed_experts"] != "int4_g32":
            raise ValueError(
                f"{spec.name or spec.label}: this recipe keeps experts that were released in int4_g32, got "
                f"{spec.native_formats['routed_experts']}; take Q4_K_M or Q8_0"
            )
        return inner(spec)

    return bytes_of_part


def _fp8(spec: ModelSpec) -> dict[str, int]:
    """As DeepSeek's releases: embedding, head and router stay bf16."""
    kept = ("embedding", "lm_head", "router", "norms")
    return spec.bytes_of_part({part: "bf16" if part in kept else "fp8_128x128" for part in PARTS})


_FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


def _ggml_bytes(tensor: Tensor, num: int, format_name: str) -> int:
    if tensor.columns % 256:
        format_name = _FALLBACK[format_name]
    return num * WEIGHT_FORMATS[format_name](tensor.rows, tensor.columns)


def _q4_k_m(spec: ModelSpec) -> dict[str, int]:
    num_layers = spec.num_hidden_layers
    moe = spec.model_layer_of_layer
    layers_of_part = {
        "routed_experts": moe,
        "shared_experts": moe,
        "dense_mlp": [layer for layer in range(num_layers) if layer not in moe],
        "attention": list(range(num_layers)),
    }
    sizes: dict[str, int] = {}
    for tensor in tensors_of(spec):
        if tensor.kind != "matrix" or tensor.part == "router":
            size = 4 * tensor.params
        elif tensor.name == "lm_head":
            size = _ggml_bytes(tensor, tensor.num, "Q6_K")
        elif tensor.name in ("down_proj", "v_proj"):
            layers = layers_of_part[tensor.part]
            each = tensor.num // len(layers)
            num_more = each * sum(use_more_bits(layer, num_layers) for layer in layers)
            size = _ggml_bytes(tensor, num_more, "Q6_K") + _ggml_bytes(tensor, tensor.num - num_more, "Q4_K")
        else:
            size = _ggml_bytes(tensor, tensor.num, "Q4_K")
        sizes[tensor.part] = sizes.get(tensor.part, 0) + size
    return {part: sizes[part] for part in PARTS if part in sizes}


def _ud_q2(spec: ModelSpec) -> dict[str, int]:
    sizes = spec.bytes_of_part({part: "Q8_0" for part in PARTS})
    return sizes | {"routed_experts": round(spec.routed_params * UD_Q2_EXPERT_BITS / 8)}


_LLAMA = "llama-quantize's rule for the mixed files; sizes checked against published ones"
_UNSLOTH = "unsloth's Kimi K2.6 files: 340, 585 and 595 GB"
RECIPES: dict[str, Recipe] = {
    one.name: one
    for one in (
        Recipe("native", lambda spec: spec.bytes_of_part(), True, "the release: its quantised parts, the rest bf16"),
        Recipe("bf16", lambda spec: spec.bytes_of_part("bf16"), True, "2 B a value"),
        Recipe("int8", lambda spec: spec.bytes_of_part("int8_g32"), True, "int8 with a bf16 scale per 32"),
        Recipe("int4", _experts_and_rest("int4_g32", "bf16"), True, "experts int4 with a bf16 scale per 32, rest bf16"),
        Recipe("fp8", _fp8, True, "FP8 in blocks of 128 x 128; embedding, head, router and norms bf16"),
        Recipe("mxfp4", _experts_and_rest("mxfp4", "bf16"), True, "experts OCP MX FP4, rest bf16"),
        Recipe("Q8_0", lambda spec: spec.bytes_of_part("Q8_0"), True, "GGUF Q8_0 throughout"),
        Recipe("Q4_K_M", _q4_k_m, True, _LLAMA),
        Recipe("UD-Q2_K_XL", _ud_q2, False, f"{_UNSLOTH}: experts {UD_Q2_EXPERT_BITS} bits on average, rest Q8_0"),
        Recipe("UD-Q4_K_XL", _native_int4("Q4_0", "Q8_0"), True, f"{_UNSLOTH}: native experts as Q4_0, rest Q8_0"),
        Recipe("UD-Q8_K_XL", _native_int4("Q4_0", "bf16"), True, f"{_UNSLOTH}: native experts as Q4_0, rest bf16"),
    )
}
