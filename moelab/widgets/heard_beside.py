"""heard_beside: what the page says to a widget is heard while a cell waits for the widget.  Floor 6.

JupyterLab (4.4 on) sends what a widget says to a thread of the kernel's beside the cells, a subshell. ipykernel 7.4
sends it on to whoever wrote to the page last, which is the cell that waits: so nobody hears it. Within this context it
goes where the page addressed it. Without subshells (ipykernel 6, other pages) nothing changes: there an interrupt is
heard.
Does not know what is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ROUTE = "_reply_subshell_for"


@contextmanager
def heard_beside(comm: Any) -> Iterator[None]:
    """``comm``: of the widget, or ``None`` where it has none (closed, no kernel)."""
    if not hasattr(comm, _ROUTE) or _ROUTE in vars(comm):  # an outer wait has done it
        yield
        return
    setattr(comm, _ROUTE, lambda data, addressed: addressed)
    try:
        yield
    finally:
        vars(comm).pop(_ROUTE, None)
