"""``moelab generate MODEL PROMPT``: text, streamed, with the engine's counters at the end."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moelab.cli.fast_tier_arguments import fast_tier_summary, print_fast_tier
from moelab.cli.lossy_arguments import lossy_text, print_lossy
from moelab.cli.output import print_json
from moelab.cli.record import add_engine, load_engine

if TYPE_CHECKING:
    from moelab.engine.engine import Engine

HELP = "generate text with the engine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face checkpoint folder, or `nano`")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text to continue")
    parser.add_argument("--prompts", metavar="FILE", help="instead of PROMPT: JSON lines as `moelab record` reads them")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, help="sample from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, help="sample from the likeliest tokens of this total probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--read-limit", action=argparse.BooleanOptionalAction, default=True,
        help="measure the read limit in this run, after the first text (mostly below a second); without it percentages "
        "are of a calibration, where there is one",
    )  # fmt: skip
    add_engine(parser)


def run(options: argparse.Namespace) -> None:
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("got both or neither of PROMPT and --prompts, expected exactly one")
    if options.prompts:
        from moelab.engine.prompts import read_prompts

        prompts = [(p.prompt, p.max_new_tokens) for p in read_prompts(Path(options.prompts))]
    else:
        prompts = [(options.prompt, options.max_new_tokens)]
    engine = load_engine(options)
    if not options.read_limit:
        use_calibration(engine)
    rows = []
    for prompt, max_new_tokens in prompts:
        before, mark = engine.counters, engine.decode_mark()
        started = time.perf_counter()
        if not options.json:
            print(prompt, end="", flush=True)
        pieces = []
        stream = engine.stream(
            prompt,
            max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
        )
        for _, piece in stream:
            pieces.append(piece)
            if not options.json:
                print(piece, end="", flush=True)
        seconds = time.perf_counter() - started
        rates = engine.decode_rates(mark)
        if rates is not None and options.read_limit and engine.read_limit is None:
            engine.measure_read_limit()  # by the workers that the steps had
            rates = engine.decode_rates(mark)
        row = {
            "prompt": prompt,
            "text": "".join(pieces),
            "new_tokens": len(pieces),
            "seconds": seconds,
            "expert_bytes_read": engine.counters.expert_bytes - before.expert_bytes,
            "isa": engine.isa,
            "activation": engine.activation,
            "carried": engine.carried,
            "decode_rates": None if rates is None else asdict(rates),
        }
        rows.append(row)
        if not options.json:
            print()
            print(
                f"[{row['new_tokens']} tokens, {row['new_tokens'] / row['seconds']:.1f} tok/s with prefill, "
                f"experts {row['expert_bytes_read'] / 1e9:.3f} GB, {engine.isa}, {engine.activation}]",
                file=sys.stderr,
            )
            for name, text in ({} if rates is None else rates.summary()).items():
                print(f"  {name}: {text}", file=sys.stderr)
    lossy = lossy_text(engine)
    if options.json:
        print_json({"generations": rows, "fast_tier": fast_tier_summary(engine), "lossy": lossy})
    else:
        print_fast_tier(engine)
        print_lossy(engine)


def use_calibration(engine: Engine) -> None:
    """Percentages of this run are of this machine's calibrated read rates, where there are any for its nodes."""
    from moelab.calibration import machine_file
    from moelab.domain.machine import Machine
    from moelab.engine.counters import fit_the_cache
    from moelab.engine.step_rates import KnownLimit

    if machine_file().is_file():
        cached = fit_the_cache(engine.routed)
        engine.read_limit = KnownLimit.of_machine(Machine.load(machine_file()), engine.pool, cached)
