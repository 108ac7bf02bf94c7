"""sweep(trace, policies, capacities): every policy at every capacity, rows kept as they come.  Floor 4.

With ``out`` a row that is there is read, not computed: an interrupted sweep goes on where it stopped, a repeated one
computes nothing, and a larger one computes what is new. Ctrl-C leaves whole rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moelab.domain.plan import PolicyChoice
from moelab.domain.trace import Trace
from moelab.policies import POLICIES
from moelab.sweeps import in_threads, on_dask
from moelab.sweeps.cell import Cell
from moelab.sweeps.result import SweepResult
from moelab.sweeps.rows import Row, RowFolder

SCOPES = ("layer", "global")
"""Whether each layer has its own slots, or all layers share them."""


def sweep(
    trace: Trace,
    policies: Iterable[str | PolicyChoice],
    capacities: Iterable[int | float],
    *,
    scope: str = "layer",
    out: str | Path | None = None,
    scheduler: str | None = None,
    num_threads: int | None = None,
    phase: str | None = None,
    oracles: bool = False,
    progress: bool = True,
) -> SweepResult:
    """Simulate every policy (a name, or a ``PolicyChoice`` with parameters) at every capacity.

    A capacity is an int, slots in each layer (``scope`` ``layer``) or over all layers (``global``), or a float, a
    share of the experts above 0 up to 1.0, rounded to slots, at least one. ``out``: folder of the rows.
    ``scheduler``: address of a Dask scheduler; otherwise ``num_threads`` threads (default: one for each core).
    ``phase``: what the result shows at first. ``oracles`` adds those that bound the policies (``Policy.oracle``).
    Raises ``ValueError`` for unknown names, capacities that do not fit, the same policy or capacity twice, or a folder
    that holds something else.
    """
    chosen, room = list(policies), list(capacities)
    cells = cells_of(trace, chosen, room, scope)
    if oracles and (bounds := _missing_oracles(cells)):
        cells = cells_of(trace, [*chosen, *bounds], room, scope)
    folder = None if out is None else RowFolder(out)
    digest = trace.digest()
    keys = [cell.key(digest) for cell in cells]
    row_of_key: dict[str, Row] = {}
    for key in keys:
        row = None if folder is None else folder.read(key)
        if row is not None:
            row_of_key[key] = row
    missing = [cell for cell, key in zip(cells, keys, strict=True) if key not in row_of_key]
    num_known = len(row_of_key)
    if missing:
        _compute(trace, missing, digest, scheduler, num_threads, folder, row_of_key, progress)
    result = SweepResult([row_of_key[key] for key in keys], num_computed=len(missing), num_known=num_known)
    return result.of_phase(phase)


def _missing_oracles(cells: list[Cell]) -> list[str]:
    wanted = {cell.oracle for cell in cells}
    return sorted(name for name in wanted - {cell.label for cell in cells} if name)


def _compute(
    trace: Trace,
    missing: list[Cell],
    digest: str,
    scheduler: str | None,
    num_threads: int | None,
    folder: RowFolder | None,
    row_of_key: dict[str, Row],
    progress: bool,
) -> None:
    """Rows of the missing cells into ``row_of_key`` and ``folder``, one by one."""
    from tqdm.auto import tqdm

    def keep(row: Row) -> None:
        row_of_key[row["key"]] = row
        if folder is not None:
            folder.write(row)
        bar.update()

    total = len(missing) + len(row_of_key)
    with tqdm(total=total, initial=len(row_of_key), desc="sweep", unit="row", disable=not progress) as bar:
        if scheduler is None:
            in_threads.compute(trace, missing, digest, num_threads, keep)
        else:
            on_dask.compute(trace, missing, digest, scheduler, keep)


def cells_of(
    trace: Trace, policies: Iterable[str | PolicyChoice], capacities: Iterable[int | float], scope: str
) -> list[Cell]:
    """The cells, policy by policy, capacities ascending; raises ``ValueError`` as ``sweep`` says."""
    header = trace.header
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}, expected {' or '.join(SCOPES)}")
    most = header.num_experts * (header.num_layers if scope == "global" else 1)
    slots = sorted(_slots(capacity, most, scope) for capacity in capacities)
    choices = [PolicyChoice(name=p) if isinstance(p, str) else p for p in policies]
    for choice in choices:
        if choice.name not in POLICIES:
            raise ValueError(f"policy is {choice.name}, expected one of {', '.join(sorted(POLICIES))}")
    cells = [Cell(choice, each, scope) for choice in choices for each in slots]
    if not cells:
        raise ValueError("got no policy or no capacity, expected at least one of each: name some")
    for name, values in (("policy", [c.label for c in cells[:: len(slots)]]), ("capacity", slots)):
        twice = sorted({str(v) for v in values if values.count(v) > 1})  # type: ignore[arg-type]
        if twice:
            raise ValueError(f"{name} {', '.join(twice)} is given twice, expected each once: leave one out")
    return cells


def _slots(capacity: int | float, most: int, scope: str) -> int:
    of = "a layer" if scope == "layer" else "all layers"
    if isinstance(capacity, float):
        if not 0 < capacity <= 1:
            raise ValueError(f"capacity is {capacity}, expected a share above 0 up to 1.0, or slots as an integer")
        return max(1, round(capacity * most))
    if not 1 <= capacity <= most:
        raise ValueError(f"capacity is {capacity} slots, expected 1 to {most}, the experts of {of}")
    return int(capacity)
