"""LoadingBar: bytes on a progress bar that appears when the work takes more than a second. Floor 2."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from tqdm.auto import tqdm


class LoadingBar:
    """For one thread: `add` bytes, or hand out a `part` that is told how much of it is done."""

    def __init__(self, description: str, num_bytes: int) -> None:
        self._bar = tqdm(total=num_bytes, unit="B", unit_scale=True, desc=description, delay=1, leave=None)

    @property
    def left(self) -> int:
        """Bytes that are not done."""
        return int(self._bar.total - self._bar.n)

    def add(self, num_bytes: int) -> None:
        self._bar.update(num_bytes)

    def part(self, num_bytes: int) -> Callable[[float], None]:
        """A function of the part (0 to 1) of these bytes that is done."""
        start = self._bar.n

        def advance(done: float) -> None:
            self._bar.update(start + int(done * num_bytes) - self._bar.n)

        return advance

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
