"""``moelab pack MODEL --out FOLDER``: repack a checkpoint once, so that loading it again only reads."""

from __future__ import annotations

import argparse

from moelab.cli.output import print_json, print_rows

HELP = "repack a checkpoint once, so that loading it again is one read at the speed of the disk"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face checkpoint folder, or `nano`")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write; it must not exist")
    parser.add_argument(
        "--dense-weights", choices=("bf16", "int8", "int4"), help="pack the linear layers too, in this format"
    )
    parser.add_argument(
        "--activation", choices=("f32", "bf16", "int8"), help="f32 writes the experts as float32; others change nothing"
    )


def run(options: argparse.Namespace) -> None:
    from moelab.engine.packed.write import pack_model
    from moelab.store import shipped

    model = shipped("nano/model") if options.model == "nano" else options.model
    packed = pack_model(model, options.out, activation=options.activation, dense_weights=options.dense_weights)
    if options.json:
        print_json(packed.summary())
    else:
        rows = {name.replace("_", " "): value for name, value in packed.summary().items()}
        print_rows(f"packed; load it with moelab.load(MODEL, packed={str(packed.folder)!r})", rows)
