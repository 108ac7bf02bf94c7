"""``moelab bench NAME``: our figures beside a limit or a peer, as ratios interleaved in one process."""

from __future__ import annotations

import argparse
from importlib import import_module

from moelab.cli.output import print_json

HELP = "measure: ratios of two things interleaved in one process, median and range"

BENCHES = (
    "kernels", "amx_on_paper", "engine", "decode", "loading", "store", "recording", "parity", "nll", "simulator",
    "dispatch", "placement",
)  # fmt: skip

# Options that only one bench has.
BENCHES_OF_OPTION: dict[str, tuple[str, ...]] = {
    "quick": ("kernels",), "expert_shape": ("engine",), "layers": ("engine",), "experts": ("engine",),
    "seed": ("placement",), "traces": ("placement",), "parts": ("placement", "loading", "recording"),
    "plans": ("placement",),
    "keep": ("placement", "loading"), "cases": ("loading",), "rounds": ("loading",),
    "out": ("nll", "placement"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", choices=BENCHES, help=", ".join(BENCHES))
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="time to measure for in each case, about (default: 10)"
    )
    parser.add_argument(
        "--quick", action="store_true", default=None, help="kernels: the main cases only, under 40 seconds"
    )
    parser.add_argument("--expert-shape", metavar="PRESET", help="engine: the model's shapes (default: kimi-k2.6)")
    parser.add_argument("--layers", type=int, metavar="L", help="engine: MoE layers (default: 2)")
    parser.add_argument("--experts", type=int, metavar="E", help="engine: routed experts per layer (default: 64)")
    parser.add_argument("--traces", nargs="+", metavar="TRACE", help="placement: routing (default: nano's capture)")
    parser.add_argument(
        "--parts", nargs="+", metavar="PART",
        help="placement: core, memory, pieces; loading: cold, warm, saved, memory; recording: nano, slice, slice-disk "
        "(default: all)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="placement: of the steps that run (default: 0)")
    parser.add_argument("--plans", metavar="FOLDER", help="placement: where plans are kept and taken from")
    parser.add_argument(
        "--keep", metavar="PATH",
        help="placement: file of results that are added to; loading: folder of the generated checkpoints, made once",
    )  # fmt: skip
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="loading: such as int4-int8 (default: all)")
    parser.add_argument("--rounds", type=int, metavar="N", help="loading: at least so many of each (default: 3)")
    parser.add_argument(
        "--out", metavar="FILE",
        help="nll: also write the rows as JSON, the table that ships; placement: page whose section is written anew",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in BENCHES_OF_OPTION if getattr(options, name) is not None}
    for name in given:
        if options.name not in BENCHES_OF_OPTION[name]:
            expected = " or ".join(BENCHES_OF_OPTION[name])
            raise ValueError(f"--{name.replace('_', '-')}: expected bench {expected}; got {options.name}")
    result = import_module(f"moelab.bench.{options.name}").run(seconds=options.seconds, **given)
    if options.json:
        print_json(result.to_dict())
    else:
        print(result)
