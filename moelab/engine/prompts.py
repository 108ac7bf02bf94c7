"""prompts.jsonl: one JSON object per line, `{request, domain, prompt, max_new_tokens}`.

Every command that takes prompts reads them here. `request` is a number, or a name, then requests are
numbered from 0 in file order; other fields are the writer's own and are ignored. A wrong line is
refused with its number. It does not know tokenizers or models. Floor 2, standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

FIELDS = ("request", "domain", "prompt", "max_new_tokens")
MAX_REQUEST = 2**31 - 1


@dataclass(frozen=True)
class Prompt:
    """One request. `prompt` is text or token ids; `request` is unique in a file; `domain` may be None.

    `name` is the request as the file spells it.
    """

    request: int
    prompt: str | tuple[int, ...]
    max_new_tokens: int
    domain: str | None = None
    name: str | None = None


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file in its order. ValueError names the file and the line; empty lines are allowed."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a prompts.jsonl file, got no such file; give its path")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got {error}; save it as UTF-8") from error
    prompts: list[Prompt] = []
    line_of_name: dict[str, int] = {}
    named = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _parse(line, where)
        by_name = isinstance(row["request"], str)
        if prompts and by_name != named:
            kind = "name" if named else "number"
            _refuse(where, f"request as a {kind} as before", repr(row["request"]), "mend it")
        named, name = by_name, str(row["request"])
        if name in line_of_name:
            _refuse(where, "a request of its own", f"{name}, already on line {line_of_name[name]}", "rename it")
        line_of_name[name] = number
        request = len(prompts) if named else row["request"]
        prompts.append(Prompt(request, row["prompt"], row["max_new_tokens"], row["domain"], name))
    if not prompts:
        _refuse(str(path), "at least one prompt", "none", "add lines")
    return prompts


def domains_of(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The domains in order of first appearance."""
    return tuple(dict.fromkeys(prompt.domain for prompt in prompts if prompt.domain is not None))


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        _refuse(where, "a JSON object", str(error), "mend the line")
    if not isinstance(row, dict):
        _refuse(where, "a JSON object", type(row).__name__, "mend the line")
    missing = [name for name in FIELDS if name not in row]
    if missing:
        _refuse(where, f"the fields {', '.join(FIELDS)}", f"none called {missing[0]}", "add it")
    request, domain, prompt = row["request"], row["domain"], row["prompt"]
    if not (isinstance(request, str) and request) and not (_is_integer(request) and 0 <= request <= MAX_REQUEST):
        _refuse(where, "request as a number from 0 or a name", repr(request), "mend it")
    if domain is not None and (not isinstance(domain, str) or not domain):
        _refuse(where, "domain as a name or null", repr(domain), "mend it")
    if isinstance(prompt, list) and prompt and all(_is_integer(token) and token >= 0 for token in prompt):
        row["prompt"] = tuple(prompt)
    elif not isinstance(prompt, str) or not prompt:
        _refuse(where, "prompt as text or a list of token ids, not empty", repr(prompt)[:60], "mend it")
    if not _is_integer(row["max_new_tokens"]) or row["max_new_tokens"] < 1:
        _refuse(where, "max_new_tokens as an integer from 1", repr(row["max_new_tokens"]), "mend it")
    return row


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(where: str, expected: str, got: str, fix: str) -> NoReturn:
    raise ValueError(f"{where}: expected {expected}, got {got}; {fix}")
