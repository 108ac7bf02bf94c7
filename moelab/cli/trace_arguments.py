"""Arguments that several commands share: TRACE, --machine, --phase."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moelab.domain.trace import Trace

PHASES = ("decode", "prefill", "all")


def add_trace(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """TRACE, positional; ``optional`` falls back to the capture that ships."""
    text = "a trace folder or a foreign file that a format can read"
    if optional:
        parser.add_argument("trace", metavar="TRACE", nargs="?", help=text + " (default: the capture that ships)")
    else:
        parser.add_argument("trace", metavar="TRACE", help=text)


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--machine",
        metavar="FILE|PRESET",
        help="a machine file or preset (default: this machine, calibrated or probed)",
    )


def add_phase(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--phase", choices=PHASES, default=default, help=f"tokens to take (default: {default})")


def load_trace(path: str | None) -> Trace:
    """The whole trace at ``path`` (default: the capture that ships)."""
    from moelab.sources import open_source
    from moelab.store import shipped

    return open_source(path or shipped("nano/capture")).load()


def check_phase(trace: Trace, phase: str) -> str | None:
    """``phase`` as the library spells it (``None``: all); raises ``ValueError`` where the trace has none of it."""
    from moelab.domain.trace import Phase

    if phase == "all":
        return None
    if not (trace.tokens.phase == Phase[phase.upper()]).any():
        raise ValueError(f"the trace of {trace.header.model} has no {phase} tokens: choose another --phase")
    return phase
