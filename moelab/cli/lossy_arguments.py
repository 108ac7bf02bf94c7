"""--lossy-cache-bias and --lossy-deferred of the commands that run the engine: results are then not the model's own."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_lossy(parser: argparse.ArgumentParser) -> None:
    """--lossy-cache-bias, --lossy-protected, --lossy-deferred."""
    parser.add_argument(
        "--lossy-cache-bias", type=float, default=0.0, metavar="B",
        help="LOSSY: prefer experts of the fast tier by B times the range of the router's scores (default: 0, exact; "
        "arXiv 2412.00099)",
    )  # fmt: skip
    parser.add_argument(
        "--lossy-protected",
        type=int,
        metavar="J",
        help="of --lossy-cache-bias: the J best of a token stay (1)",
    )
    parser.add_argument(
        "--lossy-deferred", type=int, default=0, metavar="D",
        help="LOSSY: the D last experts of a token are added one layer later (default: 0, exact; KTransformers)",
    )  # fmt: skip


def use_lossy(engine: Any, options: argparse.Namespace) -> None:
    """Give the engine what the options ask for; after its fast tier."""
    from moelab.domain.lossy import Lossy

    if options.lossy_protected is not None and not options.lossy_cache_bias:
        raise ValueError("got --lossy-protected without --lossy-cache-bias, which it belongs to")
    if options.lossy_cache_bias or options.lossy_deferred:
        protected = 1 if options.lossy_protected is None else options.lossy_protected
        engine.use_lossy(Lossy(options.lossy_cache_bias, protected, options.lossy_deferred))


def lossy_text(engine: Any) -> str | None:
    """The engine's lossy mode with its cost in NLL; None where results are the model's own."""
    text: str | None = engine.lossy_with_cost
    return text


def print_lossy(engine: Any) -> None:
    """For people, where there is something to say."""
    if engine.lossy is not None:
        print(f"[not the model's own results: {lossy_text(engine)}]", file=sys.stderr)
