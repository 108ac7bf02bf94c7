"""DiskQueue: reads of one thread that the system does meanwhile, by the asynchronous reads of Linux (io_submit).

They are asynchronous for files opened with `O_DIRECT`, on file systems that place them without waiting (ext4, xfs).
No thread is made, and nothing is held back while other threads have the interpreter. `open_queue` gives None where the
system has or allows none. The system's part of a closed queue is kept for the next one: giving it back takes 35 ms. It
does not know what is read. Floor 2.
"""

from __future__ import annotations

import ctypes
import os
import platform
import weakref
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

# io_setup, io_destroy, io_getevents, io_submit
_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_PREAD = 0


class _Request(ctypes.Structure):  # struct iocb of linux/aio_abi.h
    _fields_ = (
        ("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16), ("priority", ctypes.c_int16), ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64), ("num_bytes", ctypes.c_uint64), ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("event", ctypes.c_uint32),
    )  # fmt: skip


class _Event(ctypes.Structure):  # struct io_event
    _fields_ = (
        ("data", ctypes.c_uint64), ("request", ctypes.c_uint64), ("result", ctypes.c_int64), ("more", ctypes.c_int64),
    )  # fmt: skip


_kept: list[tuple[int, int, int]] = []  # (process, depth, context) with nothing on its way


@cache
def _syscall() -> Any:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    return syscall


class DiskQueue:
    """At most ``depth`` reads at a time, for one thread."""

    def __init__(self, context: int, depth: int, numbers: tuple[int, int, int, int]) -> None:
        self.depth = depth
        self._context = ctypes.c_ulong(context)
        self._getevents, self._submit = numbers[2:]
        self.last = 0  # number of the read that was begun last
        self.num_bytes = 0  # asked for, and not known to have come
        self._waiting: dict[int, np.ndarray] = {}  # memory that is written meanwhile, by number of the read
        self._results: dict[int, int] = {}
        self._events = (_Event * depth)()
        self._no_time = (ctypes.c_int64 * 2)()  # struct timespec
        self._open = True
        # Of a queue that nobody closed; waits for what is on its way. In a forked child the queue does not exist.
        self._finalizer = weakref.finalize(self, _destroy, os.getpid(), numbers[1], context)

    def start(self, descriptor: int, into: np.ndarray, offset: int) -> int | None:
        """Begin to fill ``into``; the number of this read, None where it cannot begin now."""
        if not self._open or len(self._waiting) >= self.depth:
            return None
        request = _Request(
            data=self.last + 1, opcode=_PREAD, descriptor=descriptor, buffer=into.ctypes.data, num_bytes=len(into),
            offset=offset,
        )  # fmt: skip
        pointer = ctypes.pointer(request)
        if _syscall()(ctypes.c_long(self._submit), self._context, ctypes.c_long(1), ctypes.byref(pointer)) != 1:
            return None
        self.last += 1
        self.num_bytes += len(into)
        self._waiting[self.last] = into
        return self.last

    def look(self, least: int = 0) -> None:
        """Take note of what came, of ``least`` reads at least. OSError."""
        while True:
            got = _syscall()(
                ctypes.c_long(self._getevents), self._context, ctypes.c_long(least), ctypes.c_long(self.depth),
                self._events, self._no_time if least == 0 else None,
            )  # fmt: skip
            if got >= 0:
                break
            if ctypes.get_errno() != 4:  # EINTR: a signal came
                raise OSError(ctypes.get_errno(), f"asynchronous read: {os.strerror(ctypes.get_errno())}")
        for event in self._events[:got]:
            self._results[event.data] = event.result
            self.num_bytes -= len(self._waiting.pop(event.data))

    def settle(self, number: int) -> bool:
        """Wait for all reads up to this one; True where there was something to wait for. OSError."""
        waited = False
        while self._waiting and next(iter(self._waiting)) <= number:
            waited = True
            self.look(1)
        return waited

    def wait(self, number: int) -> int:
        """Bytes that the read brought; each number once. OSError."""
        while number not in self._results:
            self.look(1)
        result = self._results.pop(number)
        if result < 0:
            raise OSError(-result, f"asynchronous read: {os.strerror(-result)}")
        return result

    def close(self) -> None:
        """Wait for what is on its way; no more is read for this user. Twice is harmless."""
        if not self._open:
            return
        for number in list(self._waiting):
            with suppress(OSError):  # nobody asks for it any more
                self.wait(number)
        self._results.clear()
        self._open = False
        self._finalizer.detach()
        _kept.append((os.getpid(), self.depth, self._context.value))


def _destroy(process: int, number: int, context: int) -> None:
    if process == os.getpid():
        _syscall()(ctypes.c_long(number), ctypes.c_ulong(context))


def open_queue(depth: int) -> DiskQueue | None:
    """A queue of the calling thread; None where there is no such thing."""
    numbers = _NUMBERS.get(platform.machine())
    if platform.system() != "Linux" or numbers is None:
        return None
    while _kept:
        process, kept_depth, kept = _kept.pop()
        if (process, kept_depth) == (os.getpid(), depth):
            return DiskQueue(kept, depth, numbers)
    context = ctypes.c_ulong(0)
    if _syscall()(ctypes.c_long(numbers[0]), ctypes.c_long(depth), ctypes.byref(context)) != 0:
        return None
    return DiskQueue(context.value, depth, numbers)
