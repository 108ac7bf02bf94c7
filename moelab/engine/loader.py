"""Loader: a checkpoint directory -> a model on a device, its experts packed in the kernels' arenas.

Every header is checked against config.json before a weight is read; a tensor that no part of the
model uses is either of a known kind (vision, multi-token prediction), skipped and counted, or an error.
Code in the directory is never run. It does not know generation or requests. Floor 2.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
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
from moelab.engine.loading_bar import LoadingBar
from moelab.engine.names import Names, model_module
from moelab.engine.packed.read import PackedFolder
from moelab.engine.routed_arenas import (
    Homes,
    check_memory,
    choose_activation,
    choose_formats,
    expert_layout,
    fill_homes,
    new_arenas,
    new_homes,
    num_bytes_of,
    routed_of,
    unreserved_bytes_of,
)
from moelab.engine.strips import joined_copy
from moelab.kernels.isa import choose_isa
from moelab.kernels.job import Activation, WeightFormat
from moelab.kernels.layout import ExpertLayout
from moelab.kernels.pool import Pool
from moelab.kernels.routed import RoutedExperts
from moelab.kernels.tasks import Tasks

MakeHomes = Callable[[ModelSpec, ExpertLayout, Pool], Homes]
FIRST_PART = 1 / 16  # of the experts: what others fill while the model is made
DTYPE_OF_STORED = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float32}


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
    expected: dict[str, tuple[int, ...]]  # every tensor that the model uses


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
    load_s: float = 0.0
    loaded_bytes: int = 0  # read from the checkpoint, and from the packed folder
    weight_bytes: int = 0  # in memory afterwards: experts, linear layers, the rest of the dense path
    packed: Path | None = None  # the folder that the repacked weights came from


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
    return Opened(checkpoint, module, spec, text_config, names, experts, skipped, expected)


def weights_fingerprint(opened: Opened) -> str:
    """Short sha256 of config, all headers and the routers' weights: what a trace keeps of its weights."""
    return opened.checkpoint.fingerprint(router_names(opened))


def router_names(opened: Opened) -> list[str]:
    return [opened.names.spell(f"model.layers.{layer}.mlp.gate.weight") for layer in opened.spec.model_layer_of_layer]


def small_names(opened: Opened) -> list[str]:
    """Norms, biases and routers, in the order of the files."""
    entries, routers = opened.checkpoint.entries, router_names(opened)
    vectors = [name for name, shape in opened.expected.items() if len(shape) == 1 and not name.endswith("_shape")]
    return sorted({*vectors, *routers}, key=lambda name: (entries[name].file.name, entries[name].offset))


def load_model(
    directory: str | Path,
    *,
    packed: str | Path | None = None,
    device: str | None = None,
    isa: str | None = None,
    activation: Activation | None = None,
    dense_dtype: str | None = None,
    dense_weights: str | None = None,
    num_workers: int | None = None,
    virtual_nodes: int | None = None,
    make_homes: MakeHomes | None = None,
) -> Loaded:
    """Load a checkpoint; every choice is checked before memory is taken, and stands in the result.

    `activation` f32 turns experts of any stored format into float32 (exact, up to 8 times the memory);
    None is the default of the stored format. `dense_weights` float32, bf16, int8 or int4 (CPU only): projections,
    shared experts, dense MLPs and the head run from such weights on the kernels of the routed experts, and a decode
    step is one native call; torch: they are torch's, in `dense_dtype`. None is `dense_dtype` or else the stored type
    by the kernels, torch on a GPU and where native kernels are missing. `packed` is a folder that `moelab pack` made of
    this checkpoint: what is in it, routed experts and perhaps linear layers, is read instead of repacked, and
    `dense_weights` None then means those of the folder. PackedError where it does not fit. `make_homes` gives the homes
    of the routed experts on the nodes of the pool, in place of those of `new_homes`; what it raises comes before any
    weight is read.
    """
    started = time.perf_counter()
    with uncollected():
        opened = open_model(directory)
        with closing(opened.checkpoint):
            return _load_opened(
                opened, packed, device, isa, activation, dense_dtype, dense_weights, num_workers, virtual_nodes,
                make_homes, started,
            )  # fmt: skip


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles of garbage inside: it walks the objects of all modules while disk and workers wait."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _load_opened(
    opened: Opened,
    packed: str | Path | None,
    device: str | None,
    isa: str | None,
    activation: Activation | None,
    dense_dtype: str | None,
    dense_weights: str | None,
    num_workers: int | None,
    virtual_nodes: int | None,
    make_homes: MakeHomes | None,
    started: float,
) -> Loaded:
    folder = None if packed is None else PackedFolder.open(packed, opened.checkpoint)
    if folder is not None and dense_weights is None:
        dense_weights = folder.manifest.dense_weights
    check_dense_weights(dense_weights, device, isa)
    pool = Pool(num_workers, virtual_nodes=virtual_nodes)
    try:
        loaded = _load(
            opened, folder, pool, choose_device(device), isa, activation, dense_dtype, dense_weights, make_homes
        )
    except BaseException:
        pool.close()
        raise
    finally:
        if folder is not None:
            folder.close()
    loaded.load_s = time.perf_counter() - started
    return loaded


def _load(
    opened: Opened,
    folder: PackedFolder | None,
    pool: Pool,
    device: torch.device,
    isa: str | None,
    activation: Activation | None,
    dense_dtype: str | None,
    dense_weights: str | None,
    make_homes: MakeHomes | None,
) -> Loaded:
    checkpoint, names, spec = opened.checkpoint, opened.names, opened.spec
    sample_name = names.spell("model.norm.weight")
    sample = checkpoint.entries[sample_name]
    if sample.dtype not in DTYPE_OF_STORED:
        raise CheckpointError(sample.file, f"{sample_name} as BF16, F32 or F16", sample.dtype, "convert the checkpoint")
    stored = DTYPE_OF_STORED[sample.dtype]
    dense = choose_dense_dtype(dense_dtype, stored, device)
    linear_format = choose_packed(dense_weights, stored if dense_dtype is None else dense, device, isa)
    expert_names = set().union(*(layer.shapes() for layer in opened.experts))
    expert_bytes = sum(checkpoint.entries[name].num_bytes for name in expert_names)
    dense_bytes = sum(checkpoint.entries[name].num_bytes for name in opened.expected if name not in expert_names)
    if folder is not None:
        expert_bytes = folder.expert_bytes
    # The caller makes the model while the other workers fill the first experts; the linear layers come among the rest.
    experts, tasks = Tasks(), Tasks()
    with LoadingBar("loading", expert_bytes + dense_bytes) as bar:
        if folder is None:
            weight_format, chosen = choose_formats(opened.experts, activation)
            layout = expert_layout(spec, weight_format)
            homes = _homes(make_homes, spec, layout, isa, pool)
            fill_homes(opened.experts, homes, layout, experts)
        else:
            weight_format = folder.manifest.weight_format
            chosen = choose_activation(weight_format, activation)
            layout = expert_layout(spec, weight_format)
            homes = _homes(make_homes, spec, layout, isa, pool)
            folder.fill_homes(homes, layout, spec, experts)
        routed = routed_of(homes, layout, isa, chosen, pool)
        # Linear layers that were packed before: their part of the checkpoint is not even read ahead.
        saved = None
        if folder is not None and linear_format is not None and folder.manifest.dense_weights == linear_format:
            saved = folder.tiles
        read_bytes = kept_bytes = 0

        def join(weights: Sequence[torch.Tensor], dtype: torch.dtype | None) -> torch.Tensor:
            if device.type != "cpu":  # they are read at once
                bar.add(sum(weight.nbytes for weight in weights))
            return joined_copy(weights, dtype or dense, device, tasks, checkpoint)

        def read(name: str, kind: Literal["dense", "exact", "float32", "mapped"] = "dense") -> torch.Tensor:
            nonlocal read_bytes, kept_bytes
            tensor = checkpoint.read(names.spell(name))
            read_bytes += tensor.nbytes if kind != "mapped" or saved is None else 0
            if kind == "mapped":
                return tensor
            kept = join([tensor], {"dense": dense, "float32": torch.float32, "exact": tensor.dtype}[kind])
            kept_bytes += kept.nbytes
            return kept

        linears = (
            TorchLinears(join)
            if linear_format is None
            else KernelLinears(PACKED_FORMATS[linear_format], routed[0].isa.isa, pool, checkpoint, saved, tasks)
        )
        made: list[Any] = []
        doubtful: list[Path] = []

        def make_model() -> None:
            # Each alone would wait behind the large reads of the others.
            checkpoint.keep(small_names(opened))
            if folder is not None:
                doubtful.extend(folder.compare_source())
            made.append(opened.module.Model(spec, opened.text_config, read, routed, device, linears))
            made.append(weights_fingerprint(opened))

        first, others = experts.split(FIRST_PART)
        first.run(pool, bar.part(int(FIRST_PART * expert_bytes)), make_model, checkpoint.reads)
        if folder is not None:
            folder.check_content(doubtful, pool)
        model, fingerprint = made
        others.mix(tasks)
        others.run(pool, bar.part(bar.left), reads=checkpoint.reads)
    return Loaded(
        model=model,
        spec=spec,
        configs=[checkpoint.config, opened.text_config],
        pool=pool,
        routed=routed,
        device=device,
        dense_dtype=str(dense).removeprefix("torch."),
        dense_weights=linear_format,
        isa=routed[0].isa.isa,
        activation=chosen,
        weight_format=weight_format,
        weights_fingerprint=fingerprint,
        num_skipped_tensors=opened.num_skipped_tensors,
        loaded_bytes=expert_bytes + read_bytes + (0 if saved is None else linears.num_bytes),
        weight_bytes=num_bytes_of(homes) + linears.num_bytes + kept_bytes,
        packed=None if folder is None else folder.path,
    )


def _homes(
    make: MakeHomes | None, spec: ModelSpec, layout: ExpertLayout, isa: str | None, pool: Pool
) -> Homes:  # fmt: skip
    """Empty ones. MemoryError before the first page is touched."""
    if make is None:
        return new_homes(spec.num_moe_layers, spec.n_routed_experts, layout, isa, pool)
    homes = make(spec, layout, pool)
    check_memory(unreserved_bytes_of(homes))
    return homes


def check_dense_weights(asked: str | None, device: str | None, isa: str | None) -> None:
    """ValueError for a format that does not exist, or a device or ISA that has no such kernels."""
    if asked in (None, "torch"):
        return
    if asked not in PACKED_FORMATS:
        known = ", ".join(("torch", *PACKED_FORMATS))
        raise ValueError(f"dense_weights: expected one of {known}, got {asked!r}; leave it out")
    if choose_device(device).type != "cpu":
        raise ValueError(f"dense_weights: expected device cpu, got {choose_device(device)}; leave dense_weights out")
    choice = choose_isa(isa)
    if choice.isa == "numba":
        raise ValueError(f"dense_weights: expected a native isa, got numba ({choice.why}); leave dense_weights out")


def choose_packed(asked: str | None, dtype: torch.dtype, device: torch.device, isa: str | None) -> str | None:
    """A key of PACKED_FORMATS, or None where torch computes the linear layers."""
    if asked is not None:
        return None if asked == "torch" else asked
    if device.type != "cpu" or choose_isa(isa).isa == "numba":
        return None
    return "bf16" if dtype is torch.bfloat16 else "float32"


def load_routed(
    directory: str | Path, *, isa: str | None = None, activation: Activation | None = None, pool: Pool
) -> list[RoutedExperts]:
    """Only the routed experts of a checkpoint, one per MoE layer; `owner` of each is its arena."""
    opened = open_model(directory)
    with uncollected(), closing(opened.checkpoint):
        weight_format, chosen = choose_formats(opened.experts, activation)
        layout = expert_layout(opened.spec, weight_format)
        names = set().union(*(layer.shapes() for layer in opened.experts))
        num_bytes = sum(opened.checkpoint.entries[name].num_bytes for name in names)
        with LoadingBar("experts", num_bytes) as bar:
            tasks = Tasks()
            arenas = new_arenas(len(opened.experts), opened.spec.n_routed_experts, layout)
            fill_homes(opened.experts, arenas, layout, tasks)
            tasks.run(pool, bar.part(num_bytes), reads=opened.checkpoint.reads)
    return routed_of(arenas, layout, isa, chosen, pool)
