"""From a GGUF header to the parts of a model: parameters and bytes as they lie in the file.  Floor 2.

The parts follow llama.cpp's tensor names, which are one scheme for all architectures. For architectures whose keys
are known (`gguf_config`) the header also gives a `ModelSpec`, and both must agree to the parameter: a header that
contradicts its own tensors is refused by name.

It does not know vision towers (another file) and counts layers beyond the model (MTP) apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from moelab.domain.model import ModelSpec
from moelab.domain.model_tensors import PARTS
from moelab.formats.gguf_header import GgufHeader, GgufTensor, read_header
from moelab.sizing.gguf_config import hf_config
from moelab.sizing.recipes import Recipe

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_PART_OF_PATTERN = (
    (r"token_embd\.", "embedding"),
    (r"output\.", "lm_head"),
    (r"output_norm|.*\battn_norm|.*\bffn_norm|.*\bpost_attention_norm", "norms"),
    (r".*ffn_(gate|up|down|gate_up)_exps", "routed_experts"),
    (r".*ffn_(gate|up|down)_shexp", "shared_experts"),
    (r".*(ffn_gate_inp|exp_probs_b)", "router"),
    (r".*indexer", "indexer"),
    (r".*attn_", "attention"),
    (r".*ffn_(gate|up|down)\.", "dense_mlp"),
)
_FREQUENCIES = re.compile(r"rope_freqs|.*rope_factors")  # computed tables, no parameters


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file holds. Sizes in bytes, exact; `mtp_params` lie in layers beyond the model."""

    header: GgufHeader
    params_of_part: dict[str, int]
    bytes_of_part: dict[str, int]
    mtp_params: int

    @property
    def total_params(self) -> int:
        return sum(self.params_of_part.values())

    @property
    def num_experts(self) -> int:
        return int(self.header.value(f"{self.header.architecture}.expert_count"))

    @property
    def top_k(self) -> int:
        return int(self.header.value(f"{self.header.architecture}.expert_used_count"))

    @property
    def active_params(self) -> int:
        """Parameters that one token uses, without the embedding table (as `ModelSpec.active_params`)."""
        parts = self.params_of_part
        routed, embedding = parts.get("routed_experts", 0), parts["embedding"]
        tied = "lm_head" not in parts
        return self.total_params - routed - (0 if tied else embedding) + routed * self.top_k // self.num_experts

    def spec(self) -> ModelSpec:
        """The architecture, checked against the tensors. ValueError by key or part where they disagree."""
        spec = ModelSpec.from_hf_config(hf_config(self.header), name=self.header.path.stem)
        for part, params in spec.params_of_part.items():
            if self.params_of_part.get(part, 0) != params:
                raise ValueError(
                    f"{self.header.path.name}: {part}: expected {params} parameters from the header's sizes, got "
                    f"{self.params_of_part.get(part, 0)} in its tensors; use the file's own totals or its config.json"
                )
        return spec

    def recipe(self) -> Recipe:
        """The file's own mixture, as a recipe for `size`."""
        return Recipe(self.header.path.name, lambda spec: dict(self.bytes_of_part), True, "tensor list of the file")


def read_gguf(path: str) -> GgufModel:
    """Parts of a GGUF file (or of a split model, by its first file)."""
    header = read_header(path)
    num_layers = int(header.value(f"{header.architecture}.block_count"))
    num_layers -= int(header.own("nextn_predict_layers", 0) or 0)
    params: dict[str, int] = {}
    sizes: dict[str, int] = {}
    mtp = 0
    for tensor in header.tensors:
        block = _BLOCK.match(tensor.name)
        if block and int(block[1]) >= num_layers:
            mtp += tensor.params
            continue
        if _FREQUENCIES.match(tensor.name):
            continue
        part = _part_of(tensor, header)
        params[part] = params.get(part, 0) + tensor.params
        sizes[part] = sizes.get(part, 0) + tensor.num_bytes
    if "embedding" not in params:
        raise ValueError(f"{header.path.name}: expected token_embd.weight, got no such tensor; is this a text model?")
    order = [part for part in PARTS if part in params]
    return GgufModel(header, {part: params[part] for part in order}, {part: sizes[part] for part in order}, mtp)


def _part_of(tensor: GgufTensor, header: GgufHeader) -> str:
    for pattern, part in _PART_OF_PATTERN:
        if re.match(pattern, tensor.name):
            return part
    raise ValueError(
        f"{header.path.name}: tensor {tensor.name}: expected a name of llama.cpp's scheme; its part is not known here"
    )
