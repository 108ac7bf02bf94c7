"""Parity: greedy text of the engine beside transformers in float32, token by token.

`moelab bench parity` prints one row per mode: activations of the experts, and int8 linear layers. Every token that
the engine chose is fed to transformers (teacher forcing, so one difference does not make all later ones), whose
model holds the dequantised weights, unpacked by `compressed-tensors`, not by us. A difference is
allowed only where transformers' own margin (its best logit minus that of the engine's token) is under
EPSILON of the mode; the others are counted as `unexplained` and must be 0.
It does not know speed. Floor 6; extra `[test]` (transformers, compressed-tensors).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from moelab.bench.result import BenchResult, Column
from moelab.engine.engine import Engine, load
from moelab.engine.prompts import Prompt, read_prompts
from moelab.kernels import isa_table
from moelab.store import shipped

COLUMNS = (
    Column("experts", "activation"), Column("carried", "carried"), Column("linear layers", "dense_weights"),
    Column("isa", "isa"), Column("tokens", "num_tokens"), Column("different", "num_different"),
    Column("unexplained", "num_unexplained"), Column("largest margin", "largest_margin_of_a_difference"),
    Column("allowed below", "epsilon"), Column("median logit error", "median_logit_error"),
    Column("largest", "largest_logit_error"),
)  # fmt: skip
# Top-2 margin (logits) under which a mode may choose otherwise: for bf16 and f32 about 100 times its median logit error
# on nano, the size of an error where a near tie in a router falls the other way; six times for int8 activations and,
# chosen in the same ratio (median 0.19) before it was run, for int8 linear layers beside them (else: float32 ones).
EPSILON = {("f32", None): 1e-3, ("bf16", None): 0.1, ("int8", None): 0.3, ("int8", "int8"): 1.0}


Teacher = Callable[[tuple[int, ...], int], torch.Tensor]  # tokens, first position -> logits [T - first, vocab]


@dataclass(frozen=True)
class ParityRow:
    """One mode over all prompts; `dense_weights`: packed linear layers, `torch` without; `carried`: see `Engine`."""

    activation: str
    dense_weights: str
    carried: str
    isa: str
    num_prompts: int
    num_tokens: int
    num_different: int
    num_unexplained: int
    epsilon: float
    largest_margin_of_a_difference: float
    median_logit_error: float
    largest_logit_error: float


def transformers_twin(model_dir: Path) -> Any:
    """A DeepseekV3ForCausalLM, float32 and eager, with the weights of a K2-like checkpoint dequantised."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = json.loads((model_dir / "config.json").read_text())
    config.pop("quantization_config", None)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(model_dir.glob("*.safetensors")):
        tensors |= load_file(file)
    state: dict[str, torch.Tensor] = {}
    experts: dict[tuple[str, str], dict[int, torch.Tensor]] = {}
    for name in list(tensors):
        if name.endswith("weight_packed"):
            base = name.removesuffix("_packed")
            shape = torch.Size(tensors[f"{base}_shape"].tolist())
            q = unpack_from_int32(tensors[name].view(torch.int32), 4, shape).float()
            scale = tensors[f"{base}_scale"].float()
            weight, name = q * scale.repeat_interleave(32, dim=1)[:, : shape[1]], base
        elif name.endswith(("weight_scale", "weight_shape")):
            continue
        else:
            weight = tensors[name].float()
        if ".mlp.experts." in name:
            layer, expert = name.split(".mlp.experts.")
            number, projection, _ = expert.split(".")
            experts.setdefault((layer, projection), {})[int(number)] = weight
        else:
            state[name] = weight
    for layer in {layer for layer, _ in experts}:
        gate, up, down = (experts[layer, f"{p}_proj"] for p in ("gate", "up", "down"))
        both = [torch.cat((gate[e], up[e])) for e in range(len(gate))]
        state[f"{layer}.mlp.experts.gate_up_proj"] = torch.stack(both)
        state[f"{layer}.mlp.experts.down_proj"] = torch.stack([down[e] for e in range(len(down))])
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**config | {"attn_implementation": "eager"})).float().eval()
    model.set_experts_implementation("eager")
    model.load_state_dict(state)
    return model


def teacher(twin: Any) -> Teacher:
    """What transformers says of a text from a position on, asked once: most modes write the same."""

    @cache
    @torch.no_grad()
    def logits(fed: tuple[int, ...], first: int) -> torch.Tensor:
        rows: torch.Tensor = twin(torch.tensor(fed)[None]).logits[0, first:]
        return rows.clone()

    return logits


def compare(engine: Engine, logits_of: Teacher, prompts: Sequence[Prompt], num_tokens: int) -> ParityRow:
    """Generate `num_tokens` greedily over the prompts in equal parts and judge every one of them.

    `logits_of` is a `teacher`.
    """
    dense_weights = engine.dense_weights or "torch"
    epsilon = EPSILON[engine.activation, "int8" if dense_weights == "int8" else None]
    each = -(-num_tokens // len(prompts))
    margins: list[float] = []
    errors: list[torch.Tensor] = []
    total = 0
    for prompt in prompts:
        result = engine.generate(prompt.prompt, each, stop=())
        fed = [*result.prompt_token_ids, *result.token_ids[:-1]]
        chosen = torch.tensor(result.token_ids)
        first = len(result.prompt_token_ids) - 1
        expected = logits_of(tuple(fed), first)
        errors.append((engine.forward(fed)[first:] - expected).abs().amax(-1))
        behind = expected.amax(-1) - expected.gather(-1, chosen[:, None])[:, 0]
        margins += behind[expected.argmax(-1) != chosen].tolist()
        total += len(chosen)
    error = torch.cat(errors)
    return ParityRow(
        activation=engine.activation,
        dense_weights=dense_weights,
        carried=engine.carried,
        isa=engine.isa,
        num_prompts=len(prompts),
        num_tokens=total,
        num_different=len(margins),
        num_unexplained=sum(margin >= epsilon for margin in margins),
        epsilon=epsilon,
        largest_margin_of_a_difference=max(margins, default=0.0),
        median_logit_error=float(error.median()),
        largest_logit_error=float(error.max()),
    )


def parity(
    model_dir: Path,
    prompts_file: Path,
    num_tokens: int = 1000,
    modes: Sequence[tuple[Any, str | None]] | None = None,
    num_prompts: int = 20,
) -> list[ParityRow]:
    """One row for each mode (activation, linear layers); None: all that run here. Prompts evenly from the file."""
    if modes is None:
        native = any(row.supported and row.isa != "numba" for row in isa_table())
        modes = [mode for mode in EPSILON if native or mode[1] is None]
    prompts = read_prompts(prompts_file)
    prompts = prompts[:: max(1, len(prompts) // num_prompts)][:num_prompts]
    logits_of = teacher(transformers_twin(model_dir))
    rows = []
    for activation, dense_weights in modes:
        with load(
            model_dir, activation=activation, device="cpu", dense_dtype="float32", dense_weights=dense_weights
        ) as engine:
            rows.append(compare(engine, logits_of, prompts, num_tokens))
    return rows


def run(seconds: float = 0.0) -> BenchResult:
    """``moelab bench parity``: nano in every mode; takes about five minutes whatever ``seconds`` says."""
    rows = parity(shipped("nano/model"), shipped("nano/prompts.jsonl"))
    return BenchResult("nano against transformers, float32, greedy", [asdict(row) for row in rows], columns=COLUMNS)
