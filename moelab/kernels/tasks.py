"""Tasks: work that is gathered first and drawn by all workers of a pool afterwards, all of it in one go.

A model has thousands of matrices of a few strips each. Filled one after the other, the workers meet at the end of each,
and the disk waits with them. Does not know what a task does. Floor 1.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

from moelab.kernels.pool import AHEAD, Pool, Reads

GROUP_BYTES = 1 << 20  # small tasks are drawn together until they are this much
MOST_AHEAD = 64  # groups that are drawn ahead by all workers together, or AHEAD by each
AHEAD_PART = 24  # and together at most this part of all bytes
Task = Callable[[], object]
Advance = Callable[[float], object]  # told the part (0 to 1) that is done


class Tasks:
    """Tasks in the order of adding, each with the bytes that it handles."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        self._aheads: list[Task | None] = []
        self._bytes: list[int] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, num_bytes: int, task: Task, ahead: Task | None = None) -> None:
        """``ahead`` is called by the worker that will do the task, some other tasks before (``Pool.draw``)."""
        self._tasks.append(task)
        self._aheads.append(ahead)
        self._bytes.append(num_bytes)

    def extend(self, tasks: Sequence[tuple[int, Task, Task | None]]) -> None:
        for num_bytes, task, ahead in tasks:
            self.add(num_bytes, task, ahead)

    def split(self, part: float) -> tuple[Tasks, Tasks]:
        """The first tasks, of about this part (0 to 1) of the bytes, and the others; none is left here."""
        sums = list(accumulate(self._bytes))
        count = bisect_left(sums, part * sums[-1]) if sums else 0
        first, others = Tasks(), Tasks()
        rows = list(zip(self._bytes, self._tasks, self._aheads, strict=True))
        first.extend(rows[:count])
        others.extend(rows[count:])
        self._tasks, self._aheads, self._bytes = [], [], []
        return first, others

    def mix(self, others: Tasks) -> None:
        """Take these too, spread evenly: where some wait for the disk, the others have something to compute."""
        placed = []
        for tasks in (self, others):
            total, done = max(sum(tasks._bytes), 1), 0
            rows = list(zip(tasks._bytes, tasks._tasks, tasks._aheads, strict=True))
            for first, stop in group(tasks._bytes):
                placed.append((done / total, rows[first:stop]))
                done += sum(tasks._bytes[first:stop])
            tasks._tasks, tasks._aheads, tasks._bytes = [], [], []
        for _, rows in sorted(placed, key=lambda pair: pair[0]):
            self.extend(rows)

    def run(
        self,
        pool: Pool | None,
        advance: Advance = lambda done: None,
        meanwhile: Task = lambda: None,
        reads: Reads | None = None,
    ) -> None:
        """Do all of it (None: alone) and forget it. Raises what a task raises; no further one is begun then.

        ``meanwhile`` is done by the caller's worker before it takes part. ``reads`` are what the tasks' aheads begin.
        """
        tasks, aheads, sizes = self._tasks, self._aheads, self._bytes
        self._tasks, self._aheads, self._bytes = [], [], []
        if pool is None:
            meanwhile()
            for task in tasks:
                task()
            return
        groups = group(sizes)
        sums = list(accumulate((sum(sizes[first:stop]) for first, stop in groups), initial=0))

        def do(number: int) -> None:
            for task in tasks[slice(*groups[number])]:
                task()

        def look_ahead(number: int) -> None:
            for begin in aheads[slice(*groups[number])]:
                if begin is not None:
                    begin()

        def tell(num_done: int) -> None:
            advance(sums[num_done] / max(sums[-1], 1))

        largest = max([GROUP_BYTES, *sizes])
        most = min(MOST_AHEAD, sums[-1] // (AHEAD_PART * largest))
        most = max(AHEAD, most // pool.num_workers)
        pool.draw(len(groups), do, tell, look_ahead, meanwhile, reads, most)


def group(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """[first, stop) of neighbours that are drawn at once: what reads ahead of them has as much to do as for large ones.

    One that is large stands alone.
    """
    groups, first, size = [], 0, 0
    for number, num_bytes in enumerate(sizes):
        if number > first and size + num_bytes > GROUP_BYTES:
            groups.append((first, number))
            first, size = number, 0
        size += num_bytes
    return [*groups, (first, len(sizes))] if sizes else groups
