"""``moelab calibrate``: measure this machine and write ``machine.json``, which all predictions then use."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from moelab.cli.output import print_json, print_rows

HELP = "measure this machine: reads, expert kernels, overheads, nodes at once, copies; under two minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="the machine file (default: machine.json in the cache folder)")
    parser.add_argument(
        "--expert-shape", nargs="+", metavar="PRESET", help="expert shapes, presets or HxI (default: kimi-k2.6)"
    )
    parser.add_argument("--virtual-nodes", type=int, metavar="N", help="divide the cores into N nodes; needs --out")
    parser.add_argument("--isa", metavar="NAME", help="kernels (default: the fastest)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time to measure for, about (default: 60)")


def run(options: argparse.Namespace) -> None:
    from moelab.calibration import calibrate, machine_file
    from moelab.calibration.calibrate import DEFAULT_SHAPES
    from moelab.calibration.doubts import unsteady_of

    if options.virtual_nodes is not None and options.out is None:
        raise ValueError(
            "--virtual-nodes needs --out: this machine has no such nodes, so its own file must not say that it has"
        )
    out = Path(options.out) if options.out else machine_file()
    if options.out and not out.resolve().parent.is_dir():
        raise ValueError(f"--out is {options.out}, but its folder does not exist: create it or choose another path")
    begin = time.perf_counter()
    machine = calibrate(
        options.expert_shape or DEFAULT_SHAPES, virtual_nodes=options.virtual_nodes, isa=options.isa,
        seconds=options.seconds, out=out, progress=not options.json,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    unsteady = unsteady_of(machine)
    if options.json:
        print_json(
            {"out": str(out), "seconds": seconds, "unsteady": unsteady, "machine": machine.model_dump(mode="json")}
        )
        return
    warning = {"UNSTEADY": unsteady} if unsteady else {}
    doubt = ", IN DOUBT: see below" if machine.notes else ""
    print_rows(
        f"machine written to {out} in {seconds:.0f} s{doubt}", {**machine.summary(), **_figures(machine), **warning}
    )


def _figures(machine) -> dict[str, str]:
    rows = {name: f"{value:.3g}" for name, value in machine.contention.items()}
    for times in machine.expert_times:
        rows[f"{times.name}: pieces"] = ", ".join(f"1/{m}: {f:.3f}" for m, f in times.piece_factor.items())
        for busy, each in times.busy.items():
            rows[f"{times.name}: {busy} nodes busy"] = (
                f"{each.read_gb_per_s:.1f} GB/s each, kernels reach {each.kernel_share:.2f} of what that allows"
            )
        if times.uploads:
            rows[f"{times.name}: copies beside"] = (
                f"{times.uploads.beside_gb_per_s:.1f} GB/s ({times.uploads.alone_gb_per_s:.1f} alone), "
                f"reads {times.uploads.read_gb_per_s:.1f} (by {times.uploads.by})"
            )
    rows["residuals"] = ", ".join(f"{name} {value:.1%}" for name, value in machine.residuals.items())
    return rows
