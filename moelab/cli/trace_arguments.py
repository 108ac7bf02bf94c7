"""Arguments that several commands share: TRACE, --machine, --phase."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moelab.domain.trace import Trace

PHASES = ("decode", "prefill", "all")
STEP_PHASES = (*PHASES, "mixed")  # mixed: steps with tokens of both, as continuous batching makes them


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


def add_phase(parser: argparse.ArgumentParser, default: str, *, of_steps: bool = False) -> None:
    """``of_steps``: whole forward passes are counted, so that those with tokens of both phases are a phase too."""
    choices, what = (STEP_PHASES, "steps") if of_steps else (PHASES, "tokens")
    parser.add_argument("--phase", choices=choices, default=default, help=f"{what} to take (default: {default})")


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
    if phase == "mixed" or not (trace.tokens.phase == Phase[phase.upper()]).any():
        raise ValueError(f"the trace of {trace.header.model} has no {phase} tokens: choose another --phase")
    return phase


def check_step_phase(trace: Trace, phase: str) -> str | None:
    """The same for steps. Tokens of the phase that lie in mixed steps are not counted; standard error says how many."""
    import numpy as np

    from moelab.domain.trace import Phase

    if phase == "all":
        return None
    step = np.unique(trace.tokens.step, return_inverse=True)[1]
    is_decode = trace.tokens.phase == Phase.DECODE
    num_tokens = np.bincount(step)
    num_decode = np.bincount(step, is_decode)
    is_mixed = ((num_decode > 0) & (num_decode < num_tokens))[step]
    of_phase = np.ones_like(is_decode) if phase == "mixed" else is_decode == (phase == "decode")
    if not (of_phase & (is_mixed == (phase == "mixed"))).any():
        raise ValueError(f"the trace of {trace.header.model} has no {phase} steps: choose another --phase")
    if phase != "mixed" and (num_left := int((of_phase & is_mixed).sum())):
        print(
            f"{num_left:,} of {int(of_phase.sum()):,} {phase} tokens lie in steps with tokens of both phases and "
            "are not counted: --phase mixed or all",
            file=sys.stderr,
        )
    return phase
