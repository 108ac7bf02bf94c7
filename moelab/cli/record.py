"""``moelab record MODEL --prompts F --out DIR``: generate from prompts and record the routing."""

from __future__ import annotations

import argparse
from pathlib import Path

from moelab.cli.fast_tier_arguments import add_fast_tier, fast_tier_summary, plan_of, print_fast_tier, use_slots
from moelab.cli.lossy_arguments import add_lossy, lossy_text, print_lossy, use_lossy
from moelab.cli.output import print_json, print_rows

HELP = "generate from prompts and record which experts each token used"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face checkpoint folder, or `nano`")
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="JSON lines of {request, domain, prompt, max_new_tokens}"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the trace folder to write")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="B", help="sequences decoded together (default: 1)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument("--licence", default="not stated", help="licence of the capture, written into its header")
    parser.add_argument("--scores", action="store_true", default=None, help="store the router scores of all experts")
    parser.add_argument(
        "--stale-gate", action="store_true", default=None, help="store what each router would choose a layer early"
    )
    parser.add_argument("--keep-text", action="store_true", help="store token ids: they are the users' text")
    parser.add_argument("--seed", type=int, default=0)
    add_engine(parser)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """--device, --isa, --activation, --packed, the fast tier and the lossy modes."""
    parser.add_argument("--device", help="torch device of the dense path (default: cuda where there is one)")
    parser.add_argument("--isa", help="numba, generic, avx2, avx512, amx (default: the fastest here)")
    parser.add_argument("--activation", choices=("f32", "bf16", "int8"), help="activation mode of the experts")
    parser.add_argument("--packed", metavar="FOLDER", help="read the weights that `moelab pack` wrote")
    add_fast_tier(parser)
    add_lossy(parser)


def load_engine(options: argparse.Namespace):
    """The engine that the options describe."""
    from moelab.engine.engine import load
    from moelab.store import shipped

    plan = plan_of(options)
    model = shipped("nano/model") if options.model == "nano" else options.model
    engine = load(
        model, packed=options.packed, device=options.device, isa=options.isa, activation=options.activation,
        virtual_nodes=options.virtual_nodes, plan=plan, late=options.late,
        allow_unbound=options.allow_unbound,
    )  # fmt: skip
    try:
        use_slots(engine, options)
        use_lossy(engine, options)
    except BaseException:
        engine.close()
        raise
    return engine


def run(options: argparse.Namespace) -> None:
    from moelab.engine.prompts import read_prompts
    from moelab.engine.record_prompts import record_prompts

    prompts = read_prompts(options.prompts)
    engine = load_engine(options)
    capture = record_prompts(
        engine,
        prompts,
        options.out,
        batch_size=options.batch_size,
        keep_text=options.keep_text,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
        licence=options.licence,
        provenance=f"moelab record {options.model} --prompts {Path(options.prompts).name}",
        progress=not options.json,
        scores=options.scores,
        stale_gate=options.stale_gate,
    )
    lossy = lossy_text(engine)
    if options.json:
        print_json({**capture.summary(), "fast_tier": fast_tier_summary(engine), "lossy": lossy})
    else:
        rows = {name.replace("_", " "): value for name, value in capture.summary().items()}
        print_rows(f"trace written to {options.out}", rows)
        print_fast_tier(engine)
        print_lossy(engine)
