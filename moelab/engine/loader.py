"""Loader: a checkpoint directory -> a model on a device, its experts packed in the kernels' arenas.

Every header is checked against config.json before a weight is read; a tensor that no part of the
model uses is either of a known kind (vision, multi-token prediction), skipped and counted, or an error.
Code in the directory is never run. It does not know generation or requests. Floor 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from moelab.domain.model import ModelSpec
from moelab.domain.model_config import text_config_of
from moelab.engine.checkpoint import Checkpoint, CheckpointError
from moelab.engine.dense import PACKED_FORMATS, KernelLinears, TorchLinears
from moelab.engine.device import choose_dense_dtype, choose_device
from moelab.engine.expert_tensors import ExpertTensors
from moelab.engine.names import Names, model_module
from moelab.kernels.arena import ExpertArena
from moelab.kernels.isa import choose_isa
from moelab.kernels.job import ACTIVATIONS, ACTIVATIONS_OF_FORMAT, Activation, WeightFormat
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts

DTYPE_OF_STORED = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float32}
LARGE_BYTES = 256_000_000  # from here on a progress bar


@dataclass
class Opened:
    """A checkpoint whose headers are known to fit its config; nothing is loaded yet."""

    checkpoint: Checkpoint
    module: ModuleType
    spec: ModelSpec
    text_config: dict[str, Any]
    names: Names
    experts: list[ExpertTensors]
    num_skipped_tensors: dict[str, int]


@dataclass
class Loaded:
    """A model ready to run and what was decided on the way."""

    model: Any
    spec: ModelSpec
    configs: list[dict[str, Any]]  # the whole one and the text model's
    pool: Pool
    routed: list[RoutedExperts]
    device: torch.device
    dense_dtype: str
    dense_weights: str | None  # packed format of the linear layers; None: torch's, in dense_dtype
    isa: str
    activation: Activation
    weight_format: WeightFormat
    weights_fingerprint: str
    num_skipped_tensors: dict[str, int]


def open_model(directory: str | Path) -> Opened:
    """Read config and headers and check all of them. CheckpointError or ValueError (expected, got, fix)."""
    checkpoint = Checkpoint.open(directory)
    module = model_module(checkpoint.config.get("model_type"))
    spec = ModelSpec.from_hf_config(checkpoint.config)
    text_config = text_config_of(checkpoint.config)
    if spec.quant_format not in ("bf16", "int4_g32"):
        raise CheckpointError(
            checkpoint.directory / "config.json",
            "experts in bf16, float32 or int4 in groups of 32",
            spec.quant_format,
            "convert the checkpoint",
        )
    module.Model.check(text_config)
    names = Names(checkpoint, module)
    sizes = (spec.n_routed_experts, spec.hidden_size, spec.moe_intermediate_size)
    experts = [
        ExpertTensors.find(checkpoint, names.spell(f"model.layers.{layer}.mlp.experts."), *sizes)
        for layer in spec.model_layer_of_layer
    ]
    expected = {names.spell(name): shape for name, shape in module.Model.dense_shapes(spec).items()}
    for layer_experts in experts:
        expected |= layer_experts.shapes()
    checkpoint.check(expected)
    skipped = names.count_skipped(expected, spec.num_hidden_layers)
    return Opened(checkpoint, module, spec, text_config, names, experts, skipped)


def weights_fingerprint(opened: Opened) -> str:
    """Short sha256 of config, all headers and the routers' weights: what a trace keeps of its weights."""
    spell = opened.names.spell
    return opened.checkpoint.fingerprint(
        [spell(f"model.layers.{layer}.mlp.gate.weight") for layer in opened.spec.model_layer_of_layer]
    )


def load_model(
    directory: str | Path,
    *,
    device: str | None = None,
    isa: str | None = None,
    activation: Activation | None = None,
    dense_dtype: str | None = None,
    dense_weights: str | None = None,
    num_workers: int | None = None,
) -> Loaded:
    """Load a checkpoint; every choice is checked before memory is taken, and stands in the result.

    `activation` f32 turns experts of any stored format into float32 (exact, up to 8 times the memory);
    None is the default of the stored format. `dense_weights` bf16, int8 or int4 (CPU only): projections, shared
    experts, dense MLPs and the head run from such weights on the kernels of the routed experts.
    """
    check_dense_weights(dense_weights, device, isa)
    opened = open_model(directory)
    checkpoint, names, spec = opened.checkpoint, opened.names, opened.spec
    chosen_device = choose_device(device)
    sample_name = names.spell("model.norm.weight")
    sample = checkpoint.entries[sample_name]
    if sample.dtype not in DTYPE_OF_STORED:
        raise CheckpointError(sample.file, f"{sample_name} as BF16, F32 or F16", sample.dtype, "convert the checkpoint")
    dense = choose_dense_dtype(dense_dtype, DTYPE_OF_STORED[sample.dtype], chosen_device)
    pool = Pool(num_workers)
    try:
        routed = pack_routed(opened, isa, activation, pool)

        def read(name: str, kind: Literal["dense", "exact", "float32"] = "dense") -> torch.Tensor:
            tensor = checkpoint.read(names.spell(name))
            dtype = {"dense": dense, "float32": torch.float32, "exact": tensor.dtype}[kind]
            return tensor.to(device=chosen_device, dtype=dtype, copy=True)

        linears = (
            TorchLinears()
            if dense_weights is None
            else KernelLinears(PACKED_FORMATS[dense_weights], routed[0].isa.isa, pool)
        )
        model = opened.module.Model(spec, opened.text_config, read, routed, chosen_device, linears)
    except BaseException:
        pool.close()
        raise
    fingerprint = weights_fingerprint(opened)
    checkpoint.close()
    return Loaded(
        model=model,
        spec=spec,
        configs=[checkpoint.config, opened.text_config],
        pool=pool,
        routed=routed,
        device=chosen_device,
        dense_dtype=str(dense).removeprefix("torch."),
        dense_weights=dense_weights,
        isa=routed[0].isa.isa,
        activation=routed[0].activation,
        weight_format=routed[0].layout.weight_format,
        weights_fingerprint=fingerprint,
        num_skipped_tensors=opened.num_skipped_tensors,
    )


def check_dense_weights(asked: str | None, device: str | None, isa: str | None) -> None:
    """ValueError for a format that does not exist, or a device or ISA that has no such kernels."""
    if asked is None:
        return
    if asked not in PACKED_FORMATS:
        raise ValueError(f"dense_weights: expected one of {', '.join(PACKED_FORMATS)}, got {asked!r}; leave it out")
    if choose_device(device).type != "cpu":
        raise ValueError(f"dense_weights: expected device cpu, got {choose_device(device)}; leave dense_weights out")
    choice = choose_isa(isa)
    if choice.isa == "numba":
        raise ValueError(f"dense_weights: expected a native isa, got numba ({choice.why}); leave dense_weights out")


def load_routed(
    directory: str | Path, *, isa: str | None = None, activation: Activation | None = None, pool: Pool
) -> list[RoutedExperts]:
    """Only the routed experts of a checkpoint, one per MoE layer; `owner` of each is its arena."""
    opened = open_model(directory)
    routed = pack_routed(opened, isa, activation, pool)
    opened.checkpoint.close()
    return routed


def choose_formats(experts: list[ExpertTensors], asked: Activation | None) -> tuple[WeightFormat, Activation]:
    """Weight format in memory and activation mode, from the stored format and what was asked for."""
    stored = {layer.stored_format() for layer in experts}
    if len(stored) != 1:
        raise ValueError(f"experts: expected one format in all layers, got {sorted(stored)}; convert the checkpoint")
    weight_format = stored.pop()
    modes = ACTIVATIONS_OF_FORMAT[weight_format]
    if asked is None:
        return weight_format, modes[0]
    if asked not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {asked!r}; leave it out")
    if asked == "f32":
        return "float32", "f32"
    if asked not in modes:
        raise ValueError(
            f"activation for {weight_format} experts: expected one of {', '.join(dict.fromkeys((*modes, 'f32')))}, "
            f"got {asked!r}; leave it out for {modes[0]}"
        )
    return weight_format, asked


def pack_routed(opened: Opened, isa: str | None, activation: Activation | None, pool: Pool) -> list[RoutedExperts]:
    """One arena per MoE layer, filled by all workers; a progress bar when there is much to do."""
    from tqdm.auto import tqdm

    spec = opened.spec
    weight_format, chosen = choose_formats(opened.experts, activation)
    choice = choose_isa(isa)
    layout = ExpertLayout(spec.hidden_size, spec.moe_intermediate_size, weight_format)
    layer_bytes = spec.n_routed_experts * layout.expert_bytes
    num_bytes = len(opened.experts) * layer_bytes
    check_memory(num_bytes)
    routed: list[RoutedExperts] = []
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc="experts", disable=num_bytes < LARGE_BYTES) as bar:
        for tensors in opened.experts:
            arena = ExpertArena(layout, tensors.num_experts)
            pool.run(_pack_share(tensors, arena, layout))
            routed.append(RoutedExperts(layout, arena.addresses, choice.isa, chosen, pool, owner=arena))
            routed[-1].share_scratch(routed[0])  # layers run one after the other: one scratch serves all
            bar.update(layer_bytes)
    return routed


def _pack_share(layer: ExpertTensors, arena: ExpertArena, layout: ExpertLayout) -> Callable[[int, int], None]:
    def pack(worker: int, num_workers: int) -> None:
        for expert in range(worker, layer.num_experts, num_workers):
            layer.pack(expert, arena[expert], layout)

    return pack


def check_memory(num_bytes: int) -> None:
    """MemoryError before the first page is touched."""
    import psutil

    available = psutil.virtual_memory().available
    if num_bytes > available:
        raise MemoryError(
            f"experts: expected {num_bytes / 2**30:.1f} GiB of free memory, got {available / 2**30:.1f} GiB; "
            "free memory, load a smaller model, or leave out activation='f32'"
        )
