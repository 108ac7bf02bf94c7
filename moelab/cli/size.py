"""``moelab size MODEL --machine NAME``: parameters, bytes, whether it fits, how fast, and how sure that is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelab.cli.output import print_json, print_rows, print_table

if TYPE_CHECKING:
    import pandas as pd

    from moelab.domain.machine import Machine
    from moelab.domain.model import ModelSpec
    from moelab.sizing import Sizing
    from moelab.sizing.recipes import Recipe

HELP = "what a model needs on a machine and how fast it runs there: bytes, fit, predicted tok/s with its error"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="+",
        help="a preset, a config.json, its folder, or a GGUF file (first of a split)",
    )
    add_sizing(parser)
    parser.add_argument("--points", action="store_true", help="also print every published point and what it left out")
    parser.add_argument("--markdown", action="store_true", help="print the table of several as Markdown")


def add_sizing(parser: argparse.ArgumentParser) -> None:
    """What `size` and `cost` both ask of a model on a machine."""
    parser.add_argument(
        "--machine", metavar="FILE|PRESET|all",
        help="a machine file, a preset (NAME, NAME+GPU, NAME+2x-GPU), all or all+GPU (default: this machine)",
    )  # fmt: skip
    parser.add_argument("--format", metavar="F", help="recipe or weight format (default: native, or the GGUF file's)")
    parser.add_argument("--context", type=int, default=8192, metavar="N", help="tokens of a sequence (default: 8192)")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="sequences at once (default: 1)")
    parser.add_argument("--kv-format", default="bf16", metavar="F", help="format of the cache (default: bf16)")
    parser.add_argument(
        "--layout", choices=("split", "replicate", "whole"), default="split",
        help="experts over several nodes: rows split (default), a copy on each, or whole on one",
    )  # fmt: skip
    parser.add_argument(
        "--trace", metavar="T", help="measure unions of a batch, and hits of --fast-slots, on this trace"
    )
    parser.add_argument("--fast-slots", type=int, metavar="N", help="experts of each layer on the GPUs")
    parser.add_argument("--policy", metavar="NAME", help="of --fast-slots with --trace (default: the hottest, static)")
    parser.add_argument(
        "--reads-per-layer-step", type=float, metavar="R", help="reads of a simulation; the rest are hits"
    )
    parser.add_argument("--disk-gb-per-s", type=float, metavar="R", help="for a ceiling where experts must stream")
    parser.add_argument("--system-bytes", metavar="SIZE", help="left on every node for the system (default: 4GiB)")


def run(options: argparse.Namespace) -> None:
    sized = size_all(options)
    if options.json and len(sized) == 1:
        print_json(sized[0].to_dict())
    elif options.json:
        print_json({"rows": [one.to_dict() for one in sized]})
    elif len(sized) == 1:
        print_rows(f"{sized[0].spec.name} on {sized[0].machine.name}", sized[0].summary())
    elif options.markdown:
        print(markdown(table(sized)))
    else:
        print_table(f"context {options.context:,}, batch {options.batch}", table(sized))
    if options.points and not options.json:
        print_points(options.markdown)


def size_all(options: argparse.Namespace) -> list[Sizing]:
    """Every model on every machine that the options name."""
    from moelab.calibration import resolve_machine
    from moelab.domain.machine import Machine

    first, plus, gpu = (options.machine or "").partition("+")
    names = [name + plus + gpu for name in Machine.presets()] if first == "all" else [options.machine]
    machines = [resolve_machine(name) for name in names]
    if plus and first == "all":  # no GPU goes beside unified memory
        machines = [machine for machine in machines if not machine.unified_memory]
    return [_size(read_model(model), machine, options) for model in options.model for machine in machines]


def read_model(name: str) -> tuple[ModelSpec, Recipe | None]:
    """The spec of a preset, a config or a GGUF file, and the file's own mixture where it is one."""
    from moelab.domain.model import ModelSpec, presets
    from moelab.formats import gguf_header
    from moelab.sizing.gguf_model import read_gguf

    if name in presets():
        return ModelSpec.preset(name), None
    if gguf_header.matches(name):
        model = read_gguf(name)
        return model.spec(), model.recipe()
    if Path(name).exists():
        return ModelSpec.from_hf_config(name), None
    raise ValueError(f"MODEL is {name}: expected a config.json, a GGUF file or one of {', '.join(presets())}")


def _size(model: tuple[ModelSpec, Recipe | None], machine: Machine, options: argparse.Namespace) -> Sizing:
    from moelab.domain.units import parse_bytes
    from moelab.sizing import recipe, size
    from moelab.sizing.places import SYSTEM_BYTES_PER_NODE

    spec, of_file = model
    chosen = of_file if of_file is not None and options.format is None else recipe(options.format or "native")
    more: dict[str, Any] = {}
    if options.policy and not (options.trace and options.fast_slots):
        raise ValueError("--policy decides who is in --fast-slots on a --trace: give both")
    if options.fast_slots is not None:
        most = spec.n_routed_experts
        if not 0 <= options.fast_slots <= most:
            raise ValueError(f"--fast-slots is {options.fast_slots}, expected 0 to {most}, the experts of a layer")
        more["routed_fast_bytes"] = round(options.fast_slots * spec.num_moe_layers * chosen.expert_bytes(spec))
    if options.trace:
        if options.reads_per_layer_step is not None and options.fast_slots is not None:
            raise ValueError(
                "got --trace, --fast-slots and --reads-per-layer-step, expected two: the trace gives the reads"
            )
        more |= _from_trace(spec, options)
    if options.reads_per_layer_step is not None:
        more["reads_per_layer_step"] = options.reads_per_layer_step
        hits = spec.num_experts_per_tok - options.reads_per_layer_step
        if options.fast_slots is not None and options.batch == 1 and hits > options.fast_slots:
            raise ValueError(
                f"--reads-per-layer-step {options.reads_per_layer_step:g} leaves {hits:g} hits of "
                f"{spec.num_experts_per_tok}, expected at most --fast-slots {options.fast_slots}"
            )
    return size(
        spec, machine, format=chosen, context=options.context, batch=options.batch, kv_format=options.kv_format,
        layout=options.layout, disk_gb_per_s=options.disk_gb_per_s,
        system_bytes_per_node=parse_bytes(options.system_bytes) if options.system_bytes else SYSTEM_BYTES_PER_NODE,
        **more,
    )  # fmt: skip


def _from_trace(spec: ModelSpec, options: argparse.Namespace) -> dict[str, Any]:
    """Measured unions of the batch; with --fast-slots the reads of a held-out simulation of the trace's own steps."""
    from moelab.cli.trace_arguments import load_trace
    from moelab.execution.planned import plan_for, scored_part
    from moelab.simulator import simulate
    from moelab.sizing.unions import check_trace, measured_union

    trace = load_trace(options.trace)
    check_trace(trace, spec)
    distinct, told = measured_union(trace, spec, options.batch)
    more: dict[str, Any] = {"distinct": distinct, "distinct_from": told}
    if options.fast_slots:
        plan = plan_for(trace, slots=options.fast_slots, policy=options.policy)
        scored, scored_on = scored_part(trace, plan)
        result = simulate(scored, plan, phase="decode", progress=False)
        if not result.num_layer_steps:
            raise ValueError(
                f"{options.trace} holds no decode step to simulate --fast-slots on, only prefill: record decode, or "
                "give --reads-per-layer-step"
            )
        tokens = result.num_tokens / (result.num_layer_steps / trace.header.num_layers)
        if abs(tokens - options.batch) > 0.05 * options.batch:
            raise ValueError(
                f"--batch is {options.batch}, but the decode steps of {trace.header.model} hold {tokens:.2f} tokens: "
                "hits are those of the trace's own steps, record one at this batch"
            )
        reads, steps = result.reads_per_layer_step, result.num_layer_steps
        more |= {
            "distinct": (result.hits + result.misses) / steps,
            "reads_per_layer_step": reads,
            "hits_per_layer_step": result.hits / steps,
            "hits_from": f"simulated {plan.policy.name} at {options.fast_slots} slots, {scored_on} of {options.trace}",
        }
    return more


def table(sized: list[Sizing]) -> pd.DataFrame:
    """One row for each model and machine, for people."""
    import pandas as pd

    from moelab.domain.units import format_gb

    rows = []
    for one in sized:
        predicted = one.prediction
        low, high = predicted.interval_tok_per_s if predicted else (None, None)
        rows.append(
            {
                "model": one.spec.name,
                "machine": one.machine.name,
                "GB/s": round(one.bandwidth_gb_per_s),
                "mode": one.places.mode,
                "fits": "yes" if one.places.fits else "no",
                "GB of RAM": f"{sum(one.places.node_bytes) / 1e9:.0f} of {sum(one.places.node_room_bytes) / 1e9:.0f}",
                "GB of GPUs": f"{one.places.fast_bytes / 1e9:.0f} of {one.places.fast_room_bytes / 1e9:.0f}"
                if one.places.fast_room_bytes
                else "",
                "predicted tok/s": f"{predicted.tok_per_s:.1f} ({low:.1f} to {high:.1f})" if predicted else "",
                "error": f"{predicted.median_error:.0%}, {predicted.mean_error:.0%}" if predicted else "",
                "ceiling tok/s": f"{one.ceiling_tok_per_s:.0f}" if one.ceiling_tok_per_s else "",
                "prefill tok/s": one.prefill.told,
                "from disk": format_gb(one.places.streamed_bytes, 0) if one.places.streamed_bytes else "",
            }
        )
    return pd.DataFrame(rows)


def print_points(as_markdown: bool) -> None:
    """Every published point beside what a model that has not seen it says; then what the choice of the loss decides."""
    from moelab.sizing.losses import loss_table
    from moelab.sizing.published import batch_table, check_table, prefill_table
    from moelab.sizing.speed import MODES, speed_fit

    tables = [
        (str(speed_fit(mode)), speed_fit(mode).to_frame().drop(columns=["model", "kind", "ceiling_tok_per_s", "note"]))
        for mode in MODES
    ]
    tables.append(("What the choice of the loss decides (the first predicts)", loss_table()))
    tables.append(("Rates found after the hybrid fit, which has not seen them", check_table()))
    tables.append(("Batches: fitted on none of them", batch_table()))
    tables += [(str(fit), frame) for fit, frame in prefill_table()]
    for title, frame in tables:
        if as_markdown:
            print(f"\n{title}\n\n{markdown(rounded(frame))}")
        else:
            print_table(title, rounded(frame))


def rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """Floats with four significant digits, as text."""
    return frame.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value)


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)
