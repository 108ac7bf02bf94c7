"""Text to token ids and back, through `tokenizer.json` and the `tokenizers` package only.

No other tokenizer file is read and no code of a checkpoint is run: K2's own tiktoken tokenizer is
Python code, so such a checkpoint takes token ids. Floor 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a character


class TextCodec:
    """Encodes prompts and decodes tokens; `tokenizer` is None where the checkpoint has no tokenizer.json."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tokenizer: Tokenizer | None = None
        path = directory / TOKENIZER_FILE
        if path.is_file():
            from tokenizers import Tokenizer

            try:
                self.tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the package raises plain Exception
                raise ValueError(
                    f"{path}: expected a tokenizer of the tokenizers package, got {error}; download the file again"
                ) from error

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text; ids are passed through. ValueError for a text without a tokenizer."""
        if not isinstance(prompt, str):
            return [int(token) for token in prompt]
        if self.tokenizer is None:
            raise ValueError(
                f"{self.directory}: expected {TOKENIZER_FILE} to read a text prompt, got none (other tokenizer "
                "files are code and are not run); convert the tokenizer, or pass token ids"
            )
        return self.tokenizer.encode(prompt).ids

    def decode(self, token_ids: Sequence[int]) -> str | None:
        """The text of the ids, without special tokens; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return self.tokenizer.decode(list(token_ids))


class TextStream:
    """Text piece by piece: holds bytes back until the character they begin is complete."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._token_ids: list[int] = []
        self._start = 0  # the window that is decoded again
        self._read = 0  # tokens whose text has been given out

    def push(self, token_id: int) -> str:
        """The new text that this token completes; empty without a tokenizer."""
        self._token_ids.append(token_id)
        before = self._codec.decode(self._token_ids[self._start : self._read])
        now = self._codec.decode(self._token_ids[self._start :])
        if now is None or before is None or now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._token_ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What is left at the end, unfinished characters included."""
        before = self._codec.decode(self._token_ids[self._start : self._read]) or ""
        return (self._codec.decode(self._token_ids[self._start :]) or "")[len(before) :]


def stop_token_ids(directory: Path, configs: Sequence[dict[str, Any]]) -> frozenset[int]:
    """Every `eos_token_id` that generation_config.json or the given configs name."""
    from moelab.engine.checkpoint import read_json

    path = directory / "generation_config.json"
    found: set[int] = set()
    for config in (*([read_json(path)] if path.is_file() else []), *configs):
        value = config.get("eos_token_id")
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    return frozenset(found)
