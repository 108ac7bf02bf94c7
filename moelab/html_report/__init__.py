"""Floor 6. Self-contained HTML pages: one file for each kind of result, ``page`` for what they share."""

from __future__ import annotations

from moelab.html_report.analysis import report_analysis
from moelab.html_report.replay import report
from moelab.html_report.simulation import report_simulation
from moelab.html_report.sweep import report_sweep

__all__ = ["report", "report_analysis", "report_simulation", "report_sweep"]
