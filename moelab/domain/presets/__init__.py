"""Models that ship with moelab: one compact JSON file each, found by its name.  Floor 0.

A preset holds only fields that `ModelSpec` uses, retyped from the source that it names, under
`ModelSpec`'s names or those of the model's own HF config; `verified` says whether the source was
read verbatim, `notes` what is known to be uncertain. It does not hold weights or speeds.
A new preset is one new file here.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

_SUFFIX = ".json"


def names() -> list[str]:
    """Names of the presets (file names without .json), sorted."""
    folder = resources.files(__package__)
    return sorted(file.name.removesuffix(_SUFFIX) for file in folder.iterdir() if file.name.endswith(_SUFFIX))


def read(name: str) -> dict[str, Any]:
    """The parsed preset; ValueError that lists the names when there is none."""
    if name not in names():
        raise ValueError(f"model is {name!r}, expected one of {', '.join(names())}, or a config.json")
    text = resources.files(__package__).joinpath(name + _SUFFIX).read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config
