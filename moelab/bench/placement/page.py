"""The tables of the placement bench as Markdown, with the gates that they are judged by.  Floor 6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moelab.findings.page import markdown_table

GATES = {"scaling": 1.9, "kendall_tau": 0.9, "untied_pairs": 50, "regret": 0.02, "median_error": 0.05, "cells": 30}

_CORE = """### Core-bound: predicted beside measured

Two virtual nodes of one core each, `generic` kernels, so that a node is a server of its own: the same experts, two of
each node, take that many times as long on one node (mean of each alone) as on both (median over rounds and steps,
95%; gate {scaling}; one of each, the shortest call, beside it). Calibrated, then predicted, then run: steps are
single tokens drawn from all held-out requests; in each turn every plan runs a step, each another one. A step's time
is the median over rounds, at one speed (divided by how much slower than usual the plans were in that turn, in their
median). Pairs that rounds drawn again do not tell apart (two standard errors) are ties and left out. Gates: tau
{kendall_tau}, {untied_pairs} untied pairs, regret of choosing by prediction {regret:.0%}: of the model, which is told
the held-out steps that run. Intervals (95%) draw rounds again: of these steps, not of others. Beside that of regret,
in which part of the draws the choice is the best; the gate is of the regret itself, which noise makes higher on
average. Then tau over untied pairs, and regret, among plans of the same extra memory; over times as they were; and of
predictions on the planning half, where plans look as good as they were made to. Weights are generated; ms/token are
of the routed experts of all layers, scaled from those that ran, at the median speed of the run: their intervals hold
for one plan beside another.

""".format(**GATES)

_MEMORY = """### Memory-bound: the contention model

The fastest kernels on the same two virtual nodes, which now share one memory. Cells of (plan, policy, capacity, batch)
that calibration has not seen; before and after each run calls as calibration makes them, reads and kernels, alone and
at once. Errors of the contention model: with both in place of the calibrated figures (this one is judged); with the
reads of the moment alone; with neither, as anybody predicts who calibrated minutes before. Beside them total bytes over
the read limit of the moment, and over what kernels read in the moment, which knows what the judged model knows.
`static`: the hottest of the planning half are on a fast tier and not read. With a policy one core computes the misses
while another copies what is admitted. Median absolute errors; gates: {median_error:.0%}, {cells} cells, a span of 3,
and below the error of total bytes over the read limit.

""".format(**GATES)

_PIECES = """### Whole, cut or both

A layer-step at one token, `{kernel}`, of 8 experts, or of 7 where a fast tier serves one: whole experts in perfect
balance (`mirror`, or a balance as good), ceil(K / N) on the fullest node; every expert cut over the nodes
(`row_split`); as many whole ones as the nodes divide and the rest cut (`split_some`). `composed`: more nodes than
cores, the fullest node's work alone on one core, so without waits for other nodes. Ratios are medians over rounds, with
their intervals (95%, rounds drawn again); a form is beaten where another one is faster with all of its interval.

"""


def measured_where(found: Sequence[dict[str, Any]]) -> str:
    """A sentence: when and on which machine, of results from different runs each."""
    said = dict.fromkeys(
        f"{one['date']} on {one['machine']}" if "machine" in one else "on a machine and day that nobody noted"
        for one in found
    )
    return f"Measured {'; '.join(said)}.\n\n"


def _verdict(good: bool) -> str:
    return "met" if good else "missed"


def _order(one: dict[str, Any], kind: str) -> str:
    """Tau and regret with its interval."""
    interval = _interval(one[f"regret_{kind}_interval"])
    return f"{one[f'kendall_tau_{kind}']:.3f}, {one[f'regret_{kind}']:.1%} ({interval})"


def _within(one: dict[str, Any]) -> str:
    order = f"{one['kendall_tau']:.3f} over {one['untied_pairs']} of {one['pairs']}, {one['regret']:.1%}"
    return f"{one['extra_memory']:.0%}: {order}"


def _interval(interval: Sequence[float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def core_summary(found: Sequence[dict[str, Any]]) -> str:
    head = ("trace", "kernel and shape", "one node over two", "Kendall tau", "untied pairs", "regret",
            "its interval, and how often the choice is best", "gates", "among plans of the same extra memory",
            "as timed, at whatever speed", "predicted on the planning half, in sample")  # fmt: skip
    rows = []
    for one in found:
        low, high = one["scaling_interval"]
        good = (
            one["scaling"] >= GATES["scaling"] and one["kendall_tau"] >= GATES["kendall_tau"]
            and one["untied_pairs"] >= GATES["untied_pairs"] and one["regret"] <= GATES["regret"]
        )  # fmt: skip
        rows.append(
            (
                one["trace"], one["kernel"],
                f"{one['scaling']:.2f} ({low:.2f} to {high:.2f}); {one['scaling_of_one_expert']:.2f}",
                f"{one['kendall_tau']:.3f}", f"{one['untied_pairs']} of {one['pairs']}",
                f"{one['regret']:.1%} ({one['chosen']}; best {one['best']})",
                f"{_interval(one['regret_interval'])}, best in {one['chosen_is_best']:.0%}",
                _verdict(good),
                "; ".join(map(_within, one["within_extra_memory"])),
                _order(one, "raw"),
                _order(one, "beforehand"),
            )
        )  # fmt: skip
    return _CORE + markdown_table(head, rows)


def core_table(one: dict[str, Any]) -> str:
    kind = "SYNTHETIC" if one["synthetic"] else "recorded"
    head = ("planner", "extra memory", "held-out max / (K/N)", "over ceil(K/N), pieces K/N", "predicted ms/token",
            "measured ms/token (95%)", "predicted / measured")  # fmt: skip
    rows = []
    for row in one["rows"]:
        low, high = row["measured_ms_per_token_interval"]
        measured = row["measured_ms_per_token"]
        rows.append(
            (
                row["planner"], f"{row['extra_memory']:.0%}", f"{row['heldout_ratio_to_ideal']:.3f}",
                f"{row['gap']:.1%}",
                f"{row['predicted_ms_per_token']:.1f}", f"{measured:.1f} ({low:.1f} to {high:.1f})",
                f"{row['predicted_ms_per_token'] / measured:.3f}",
            )
        )  # fmt: skip
    title = (
        f"#### {one['trace']} ({one['model']}, {kind}, {one['steps']}; {one['kernel']}; {one['layers_run']} of "
        f"{one['layers_of_model']} layers, {one['num_steps']} held-out steps of "
        f"{one['num_requests']} requests, {one['num_rounds']} rounds; "
        "virtual nodes)\n\n"
    )
    return title + measured_where([one]) + markdown_table(head, rows)


_OTHER_WAYS = {
    "reads": "reads of the moment", "beforehand": "calibration alone", "bytes": "total bytes / read limit",
    "kernel_bytes": "total bytes / kernels",
}  # fmt: skip


def memory_summary(found: Sequence[dict[str, Any]]) -> str:
    head = ("trace", "kernel and shape", "cells", "time of a step spans", "read limit, GB/s", "median error",
            *_OTHER_WAYS.values(), "gates")  # fmt: skip
    rows = []
    for one in found:
        low, middle, high = one["read_gb_per_s_range"]
        error, by_way = one["median_error"], one["median_error_by_way"]
        good = (
            error <= GATES["median_error"] and one["num_cells"] >= GATES["cells"] and one["span"] >= 3
            and error < by_way["bytes"]
        )  # fmt: skip
        rows.append(
            (
                one["trace"], one["kernel"], str(one["num_cells"]), f"{one['span']:.1f} times",
                f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{error:.1%}",
                *(f"{by_way[way]:.1%}" for way in _OTHER_WAYS), _verdict(good),
            )
        )  # fmt: skip
    return _MEMORY + markdown_table(head, rows)


def memory_table(one: dict[str, Any]) -> str:
    head = ("plan", "policy", "capacity", "batch", "predicted ms/step", "measured ms/step", "error",
            *_OTHER_WAYS.values())  # fmt: skip
    rows = [
        (
            cell["plan"], cell["policy"], f"{cell['capacity']:.1%}", str(cell["batch"]),
            f"{cell['predicted_ms_per_step']:.2f}", f"{cell['measured_ms_per_step']:.2f}", f"{cell['error']:+.1%}",
            *(f"{cell['error_by_way'][way]:+.1%}" for way in _OTHER_WAYS),
        )
        for cell in one["cells"]
    ]  # fmt: skip
    links = [abs(cell["error"]) for cell in one["cells"] if cell["uploads"]]
    nodes = [abs(cell["error"]) for cell in one["cells"] if not cell["uploads"]]
    kind = "SYNTHETIC" if one["synthetic"] else "recorded"
    told = f"#### {one['trace']} ({one['model']}, {kind}; {one['layers_run']} layers, {one['num_rounds']} rounds)\n\n"
    told += measured_where([one])
    told += f"Median error on two nodes {np.median(nodes):.1%} ({len(nodes)} cells)"
    told += f", with uploads {np.median(links):.1%} ({len(links)}).\n\n" if links else ".\n\n"
    return told + markdown_table(head, rows)


def pieces_table(found: Sequence[dict[str, Any]]) -> str:
    head = ("expert shape", "MB", "nodes", "experts", "how", "whole, us", "cut / whole (95%)", "by bytes alone",
            "mixture / whole (95%)", "by bytes alone", "not beaten")  # fmt: skip
    rows = [
        (
            f"{row['shape']} ({row['hidden_size']} x {row['intermediate_size']})" if "x" not in row["shape"]
            else row["shape"].replace("x", " x "),
            f"{row['expert_bytes'] / 1e6:.2f}", str(row["nodes"]), str(row["experts"]),
            "composed" if row["composed"] else "measured", f"{row['us']['whole']:.0f}",
            *_of_form(row, "cut"), *_of_form(row, "mixture"), row["wins"],
        )
        for row in found
    ]  # fmt: skip
    return _PIECES.format(kernel=found[0]["kernel"]) + measured_where(found) + markdown_table(head, rows)


def _of_form(row: dict[str, Any], form: str) -> tuple[str, str]:
    """Its ratio to whole experts, measured and by bytes; nothing where the form is one of the others."""
    if form not in row["over_whole"]:
        return "", ""
    low, high = row["over_whole_interval"][form]
    return f"{row['over_whole'][form]:.3f} ({low:.3f} to {high:.3f})", f"{row['bytes_over_whole'][form]:.3f}"
