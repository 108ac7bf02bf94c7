"""``moelab apply PLAN --model DIR --prompts F``: generate, go over to the plan inside every text, generate on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelab.cli.fast_tier_arguments import plan_of
from moelab.cli.output import print_json, print_rows
from moelab.cli.record import add_engine, load_engine

if TYPE_CHECKING:
    from moelab.engine.prompts import Prompt

HELP = "carry a plan out in a running engine: the first half of each text before, the second after"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("new_plan", metavar="PLAN", help="a plan file of `moelab plan`")
    parser.add_argument("--model", default="nano", metavar="DIR", help="a checkpoint folder, or `nano` (default)")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="JSON lines as `moelab record` reads them")
    parser.add_argument(
        "--machine", metavar="FILE|PRESET", help="how fast nodes read, for dispatch (default: as the plan was made for)"
    )
    parser.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True,
        help="generate every text without the move first, and compare (default)",
    )  # fmt: skip
    parser.add_argument(
        "--margin", type=float, metavar="LOGITS",
        help="top-2 margin below which a token may differ by a move to or from a fast tier",
    )  # fmt: skip
    parser.add_argument(
        "--extra-bytes", metavar="SIZE",
        help="the most that experts take on their way beyond before and after (500MB); default: one layer's",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="the first N prompts only")
    add_engine(parser)


def run(options: argparse.Namespace) -> int:
    from moelab.calibration import resolve_machine
    from moelab.domain.plan import Plan
    from moelab.domain.units import parse_bytes
    from moelab.engine.prompts import read_prompts
    from moelab.kernels import choose_isa
    from moelab.kernels.plan_nodes import virtual_nodes_for
    from moelab.migration import apply
    from moelab.migration.text_difference import MARGIN, TextDifference

    plan = Plan.load(options.new_plan)
    prompts = read_prompts(Path(options.prompts))[: options.limit]
    if not prompts:
        raise ValueError(f"{options.prompts} has no prompt, expected one or more")
    machine = resolve_machine(options.machine) if options.machine else None
    extra_bytes = parse_bytes(options.extra_bytes) if options.extra_bytes else None
    if choose_isa(options.isa).isa != "numba":  # which `apply` refuses
        plans = [plan] if (first_plan := plan_of(options)) is None else [first_plan, plan]
        options.virtual_nodes = virtual_nodes_for(*plans, asked=options.virtual_nodes)
    with load_engine(options) as engine:
        counts = [each.max_new_tokens for each in prompts]
        whole = _part(engine, _streams(engine, prompts), counts)[0] if options.check else None
        streams = _streams(engine, prompts)
        first = _part(engine, streams, [1] * len(prompts))[0]  # with the prefill, and what is made on first use
        half = [max(0, each.max_new_tokens // 2 - 1) for each in prompts]
        tokens_before, before = _part(engine, streams, half)
        had_tier = engine.fast_tier is not None
        applied = apply(
            engine,
            plan,
            machine=machine,
            allow_unbound=options.allow_unbound,
            extra_bytes=extra_bytes,
            progress=not options.json,
        )
        # With the native steps made again, for the first text that goes on.
        next_one, settling = _part(engine, streams, [1] * len(prompts))
        tokens_after, after = _part(engine, streams, counts)
        result: dict[str, Any] = {
            **applied.summary(), "before": before, "after": after, "prompts": len(prompts),
            "mean_ms_of_first_tokens_after": settling["ms_per_token"],
        }  # fmt: skip
        difference = None
        if whole is not None:
            parts = zip(first, tokens_before, next_one, tokens_after, strict=True)
            # Between nodes no bit changes, so no token; beside a fast tier a close one may.
            margin = MARGIN if options.margin is None else options.margin
            allowed = margin if had_tier or engine.fast_tier is not None else 0.0
            difference = TextDifference.of(whole, [a + b + c + d for a, b, c, d in parts], allowed)
            result |= difference.summary()
    if options.json:
        print_json(result)
    else:
        rows = {name: value for name, value in result.items() if name not in ("before", "after")}
        rows |= {f"{name} {when}": value for when in ("before", "after") for name, value in result[when].items()}
        print_rows(f"{options.new_plan} applied to {options.model}", rows)
    return 0 if difference is None or difference.is_allowed else 1


def _streams(engine: Any, prompts: list[Prompt]) -> list[Iterator]:
    from moelab.engine.watched import watched_stream

    return [watched_stream(engine, each) for each in prompts]


def _part(
    engine: Any, streams: list[Iterator], counts: list[int]
) -> tuple[list[list[tuple[int, float]]], dict[str, Any]]:
    """(new tokens of each stream with their margins, figures) of the next ``counts`` tokens."""
    at_start, nodes_at_start = engine.counters, _bytes_of_node(engine)
    started = time.perf_counter()
    tokens = [list(islice(stream, count)) for stream, count in zip(streams, counts, strict=True)]
    seconds = time.perf_counter() - started
    now, num_tokens = engine.counters, sum(map(len, tokens))
    return tokens, {
        "tokens": num_tokens,
        "ms_per_token": 1e3 * seconds / num_tokens if num_tokens else None,
        "expert_bytes_per_token": (now.expert_bytes - at_start.expert_bytes) / max(1, num_tokens),
        "bytes_of_node": [a - b for a, b in zip_longest(_bytes_of_node(engine), nodes_at_start, fillvalue=0)],
    }


def _bytes_of_node(engine: Any) -> list[int]:
    """Since loading, of all layers; one number before anything was placed on nodes."""
    return [sum(of_node) for of_node in zip(*(layer.bytes_of_node for layer in engine.routed), strict=True)]
