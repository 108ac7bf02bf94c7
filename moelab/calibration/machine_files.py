"""Which machine a command means: a file, a preset, the calibration of this machine, or the quick probe. Floor 3."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path

from moelab.calibration.probe import quick_probe
from moelab.domain.machine import Machine
from moelab.domain.machine_presets import GPUS
from moelab.kernels import Activation


def machine_file() -> Path:
    """Where a calibration is kept: ``machine.json`` in the user's cache folder."""
    return user_cache_path("moelab") / "machine.json"


def resolve_machine(
    name: str | Path | None = None, *, isa: str | None = None, activation: Activation = "int8"
) -> Machine:
    """The machine that a command means.

    ``name`` is a machine file or a preset; without it the calibration of this machine, else the quick
    probe (about three seconds). Raises ``ValueError`` for an unknown name.
    """
    if name is not None:
        if Machine.is_preset(str(name)):
            return Machine.preset(str(name))
        if Path(name).is_file():
            return Machine.load(name)
        raise ValueError(
            f"--machine is {name}: expected a machine file or one of the presets {', '.join(Machine.presets())}, "
            f"alone or with a GPU beside it, such as +rtx-4090 or +2x-h200 ({', '.join(GPUS)})"
        )
    if machine_file().is_file():
        return Machine.load(machine_file())
    return quick_probe(isa=isa, activation=activation)


def this_machine() -> Machine:
    """This machine, calibrated or probed."""
    return resolve_machine(None)
