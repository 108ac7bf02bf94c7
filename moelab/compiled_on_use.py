"""on_use: a compiled function of fixed signatures whose machine code is made, or read from disk, at its first call.

With ``njit(signature)`` that happens at import, so that a first command compiled what it never called: 16 s of CPU for
``import moelab.planner`` on a cold disk. Without a signature Numba compiles again for arrays of another layout or kind,
silently; here such a call is an error, as with a signature. Other compiled code calls it like any function of Numba.
Does not know what is compiled. Floor 0, above
``first_compile`` and ``source_stamp``: Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any

from numba import njit
from numba.extending import typeof_impl

from moelab.first_compile import LISTENER as _  # noqa: F401  says when compiling takes long
from moelab.source_stamp import stamp_of_room, stamped


class OnUse:
    """``dispatcher`` is Numba's own, with every signature compiled; a caller that wants a function type takes that."""

    def __init__(self, function: Callable, signatures: Any, options: dict[str, Any]) -> None:
        self._signatures, self._options = signatures, options
        update_wrapper(self, function)

    @cached_property
    def dispatcher(self) -> Any:
        return njit(self._signatures, **self._options)(self.__wrapped__)  # type: ignore[attr-defined]

    def __call__(self, *arguments: Any) -> Any:
        return self.dispatcher(*arguments)


@typeof_impl.register(OnUse)
def _typeof(value: OnUse, context: Any) -> Any:
    return typeof_impl(value.dispatcher, context)


def on_use(
    signatures: Any, *, rooms: tuple[str, ...] = (), nogil: bool = True, **options: Any
) -> Callable[[Callable], OnUse]:
    """``njit(signatures)``, one or a list, at the first call.

    Cached on disk under the stamp of the function's own room and of ``rooms``, others whose functions it calls.
    """

    def wrap(function: Callable) -> OnUse:
        for room in rooms:
            function.__qualname__ += f"_{stamp_of_room(room)}"
        return OnUse(stamped(function), signatures, {"cache": True, "nogil": nogil, **options})

    return wrap
