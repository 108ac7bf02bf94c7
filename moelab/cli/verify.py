"""``moelab verify TRACE``: check every checksum, page, count and id of a trace folder."""

from __future__ import annotations

import argparse

from moelab.cli.output import print_json

HELP = "check every checksum, page and id of a trace folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", help="a trace folder")


def run(options: argparse.Namespace) -> int:
    from moelab.store import verify

    report = verify(options.trace)
    if options.json:
        print_json(report.to_dict())
    else:
        print(report)
    return 0 if report.ok else 2
