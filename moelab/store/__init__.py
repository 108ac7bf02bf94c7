"""Floor 1. Traces on disk: append, recover, verify, open. Imports moelab.domain, NumPy, pyarrow, pydantic.

A trace folder is ``header.json``, ``manifest.jsonl`` (the commit record), immutable
``segment-000000.parquet`` files and, while it is recorded, one ``wal-000000.log``. ``error`` is the
error, ``durable`` the calls that change the disk, ``columns`` the layout, ``manifest``, ``segment`` and
``write_ahead_log`` one kind of file each, ``folder`` their order, ``writer``, ``opened`` and ``verify`` the
three users.
"""

from moelab.store.error import TraceStoreError
from moelab.store.folder import is_trace_folder
from moelab.store.opened import StoredTrace, open_trace
from moelab.store.shipped import shipped
from moelab.store.verify import VerifyReport, verify
from moelab.store.writer import SEGMENT_TOKENS, Recovery, TraceWriter, save_trace

__all__ = [
    "SEGMENT_TOKENS",
    "Recovery",
    "StoredTrace",
    "TraceStoreError",
    "TraceWriter",
    "VerifyReport",
    "is_trace_folder",
    "open_trace",
    "save_trace",
    "shipped",
    "verify",
]
