"""``moelab bench NAME``: our figures beside a limit or a peer, as ratios interleaved in one process."""

from __future__ import annotations

import argparse
from importlib import import_module

from moelab.cli.output import print_json

HELP = "measure: ratios of two things interleaved in one process, median and range"

BENCHES = ("kernels", "store", "recording", "parity")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", choices=BENCHES, help=", ".join(BENCHES))
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="time to measure for in each case, about (default: 10)"
    )
    parser.add_argument("--quick", action="store_true", help="kernels: the main cases only, under 40 seconds")


def run(options: argparse.Namespace) -> None:
    module = import_module(f"moelab.bench.{options.name}")
    if options.quick and options.name != "kernels":
        raise ValueError(f"--quick: expected bench kernels; got {options.name}")
    result = module.run(seconds=options.seconds, **({"quick": True} if options.quick else {}))
    if options.json:
        print_json(result.to_dict())
    else:
        print(result)
