"""Floor 7. ``moelab COMMAND``: one file for each command, found by its name in ``COMMANDS``.

A command module has ``HELP``, ``add_arguments(parser)`` and ``run(arguments) -> int | None``. Errors that a
user can mend are ``ValueError`` (a policy that breaks the contract raises one too), ``OSError``, ``MemoryError``
or a package that is not installed (``ImportError``): one message on standard error and exit code 2, the
traceback only with ``--debug``. Anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = (
    "replay", "simulate", "sweep", "findings", "plan", "export", "apply", "analyse", "synth", "record", "generate",
    "pack", "verify", "size", "cost", "calibrate", "doctor", "bench",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; imports only the light command modules."""
    from moelab import __version__

    parser = argparse.ArgumentParser(
        prog="moelab", description="Where should each expert of a mixture-of-experts model live?"
    )
    parser.add_argument("--version", action="version", version=f"moelab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"moelab.cli.{name}")
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object, units in the names")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, or 2 after an error that was explained)."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("moelab: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, ImportError) as error:
        if options.debug or (isinstance(error, ImportError) and (error.name or "").startswith("moelab")):
            raise
        print(f"moelab {options.command}: {_explain(error)}", file=sys.stderr)
        return 2


def _explain(error: Exception) -> str:
    """One line; a message of our own says expected, got and fix, an import error gets its fix here."""
    if isinstance(error, ImportError):
        return f"{error}: `pip install -e '.[test]'` in moelab's folder installs everything that a command imports"
    return str(error) or type(error).__name__
