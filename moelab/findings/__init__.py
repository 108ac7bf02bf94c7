"""Floor 5. Which policy wins on which trace, by reads, held out and with intervals: the tables of docs/findings.md."""

from __future__ import annotations

from moelab.findings.page import update_page
from moelab.findings.study import Study, study

__all__ = ["Study", "study", "update_page"]
