"""The command: calibrate, plan, predict, measure, part by part; results that later runs add to.  Floor 6."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moelab.bench.placement import core_bound as core
from moelab.bench.placement import memory_bound as memory
from moelab.bench.placement.cells import WAYS, Cell
from moelab.bench.placement.core_bound import CoreBound, Planned, make_plans
from moelab.bench.placement.pieces import pieces
from moelab.bench.placement.result import PlacementResult, measured_on
from moelab.calibration import calibrate
from moelab.domain.expert_times import ExpertTimes
from moelab.domain.plan import Plan
from moelab.domain.trace import Trace
from moelab.sources import open_source
from moelab.store import shipped

PARTS = ("core", "memory", "pieces")
_SMALLEST_EXPERT = 1_000_000  # bytes: smaller ones are mostly overhead, so their routing runs at another shape
_STAND_IN = "deepseek-v2-lite"
_MEMORY_SHAPE = "kimi-k2.6"


def run(
    seconds: float = 30.0,
    *,
    traces: Sequence[str] | None = None,
    parts: Sequence[str] = PARTS,
    plans: str | None = None,
    keep: str | None = None,
    out: str | None = None,
    seed: int = 0,
) -> PlacementResult:
    """``seconds`` of measuring for each trace and part. ``traces``: folders or foreign files (default: nano's capture).

    ``plans``: a folder where plans are kept and taken from. ``keep``: a JSON file of results, read first and written
    after each part, so that parts may be measured at different moments. ``out``: a page whose section is written anew.
    ``seed``: of the held-out steps that run and of the experts of a calibration, not of the plans.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"parts are {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    result = PlacementResult.load(keep) if keep and Path(keep).exists() else PlacementResult({}, {}, [])
    for path in traces or (str(shipped("nano/capture")),):
        name, trace = _name(Path(path)), open_source(path).load()
        if "core" in parts:
            result = result.with_core(_core(name, trace, plans, seconds, seed) | measured_on())
            _save(result, keep)
        if "memory" in parts:
            result = result.with_memory(_memory(name, trace, plans, seconds, seed) | measured_on())
            _save(result, keep)
    if "pieces" in parts:
        result = result.with_pieces([row | measured_on() for row in pieces(seconds=seconds, tell=_tell)])
        _save(result, keep)
    if out:
        result.write_page(out)
    return result


def _save(result: PlacementResult, keep: str | None) -> None:
    """After each part: what is measured outlives a failure of the next."""
    if keep:
        result.save(keep)


def _name(path: Path) -> str:
    """Of a file without its ending, of a folder; captures of nano say whose they are."""
    name = path.stem if path.is_file() else path.name
    return f"{path.parent.name}/{name}" if name.startswith("capture") else name


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _calibrated(shape: str, isa: str | None, seconds: float, seed: int) -> ExpertTimes:
    """Of two virtual nodes, now: the machine is in the state that the measurement finds it in."""
    with tempfile.TemporaryDirectory() as folder:
        machine = calibrate(
            [shape], virtual_nodes=core.NUM_NODES, isa=isa, seconds=max(1.0, min(40.0, seconds)), tries=3,
            out=Path(folder) / "machine.json", progress=False, seed=seed,
        )  # fmt: skip
    return machine.expert_times[0]


def _planned(name: str, trace: Trace, folder: str | None, chosen: Any) -> Planned:
    """Plans from the folder where all are there for this trace, made as now, else made (and put there)."""
    if folder is None:
        return make_plans(trace, plans=chosen)
    book = Path(folder) / f"{name.replace('/', '_')}.json"
    wanted = [f"{planner} {share:g}" for planner, share in chosen]
    if book.exists():
        kept = json.loads(book.read_text())
        if _is_of(kept, trace) and set(wanted) <= set(kept["plans"]) | set(kept["left_out"]):
            planning, held_out, _ = core.halves(trace)
            keys = {text: (text.split()[0], float(text.split()[1])) for text in wanted if text in kept["plans"]}
            return Planned(
                {key: Plan.model_validate(kept["plans"][text]) for text, key in keys.items()},
                {key: tuple(kept["scores"][text]) for text, key in keys.items()},
                planning,
                held_out,
                kept["steps"],
            )
    made = make_plans(trace, plans=chosen)
    text_of = {key: f"{key[0]} {key[1]:g}" for key in made.plans}
    before = json.loads(book.read_text()) if book.exists() else {}
    same = _is_of(before, trace)
    document = {
        "trace": trace.fingerprint(),
        "made_by": core.made_by(),
        "steps": made.steps,
        "left_out": [text for text in wanted if text not in text_of.values()],
        "plans": (before["plans"] if same else {})
        | {text_of[key]: plan.model_dump(mode="json") for key, plan in made.plans.items()},
        "scores": (before["scores"] if same else {})
        | {text_of[key]: list(score) for key, score in made.scores.items()},
    }
    book.parent.mkdir(parents=True, exist_ok=True)
    partial = book.with_name(book.name + ".partial")
    partial.write_text(json.dumps(document))
    partial.replace(book)
    return made


def _is_of(book: dict[str, Any], trace: Trace) -> bool:
    """Plans made from this trace by what makes plans now."""
    return book.get("trace") == trace.fingerprint() and book.get("made_by") == core.made_by()


def _shape(trace: Trace) -> str:
    header = trace.header
    if header.hidden_size is None or header.moe_intermediate_size is None:
        return _STAND_IN
    is_small = 3 * header.hidden_size * header.moe_intermediate_size // 2 < _SMALLEST_EXPERT
    return _STAND_IN if is_small else f"{header.hidden_size}x{header.moe_intermediate_size}"


def _core(name: str, trace: Trace, folder: str | None, seconds: float, seed: int) -> dict[str, Any]:
    planned = _planned(name, trace, folder, core.PLANS)
    times = _calibrated(_shape(trace), "generic", seconds / 2, seed)
    found = core.core_bound(name, planned, times, seconds=seconds, seed=seed, tell=_tell)
    return {"seed": seed} | _core_document(found, trace, times)


def _core_document(found: CoreBound, trace: Trace, times: ExpertTimes) -> dict[str, Any]:
    header = trace.header
    scale = header.num_layers / found.num_layers  # a token goes through all layers
    rows = [
        {
            "planner": row.planner, "extra_memory": row.extra_memory,
            "heldout_ratio_to_ideal": row.heldout_ratio_to_ideal,
            "gap": row.gap, "predicted_ms_per_token": row.predicted_ms * scale,
            "beforehand_ms_per_token": row.beforehand_ms * scale,
            "measured_ms_per_token": row.measured_ms * scale,
            "measured_ms_per_token_interval": tuple(scale * end for end in row.measured_ms_interval),
        }
        for row in found.rows
    ]  # fmt: skip
    return {
        "trace": found.trace, "model": header.model, "synthetic": header.synthetic, "steps": found.steps,
        "kernel": found.kernel, "layers_run": found.num_layers, "layers_of_model": header.num_layers,
        "num_steps": found.num_steps, "num_requests": found.num_requests, "num_rounds": found.times.num_rounds,
        "virtual_nodes": core.NUM_NODES,
        "scaling": found.scaling.value, "scaling_interval": found.scaling.interval,
        "scaling_of_one_expert": found.scaling_of_one.value, "kendall_tau": found.ranking.tau,
        "untied_pairs": found.ranking.num_untied, "pairs": found.ranking.num_pairs, "regret": found.ranking.regret,
        "regret_interval": found.ranking.regret_interval, "chosen_is_best": found.ranking.chosen_is_best,
        "chosen": _plan_name(found, found.ranking.chosen), "best": _plan_name(found, found.ranking.best),
        "kendall_tau_beforehand": found.beforehand.tau, "regret_beforehand": found.beforehand.regret,
        "regret_beforehand_interval": found.beforehand.regret_interval,
        "chosen_is_best_beforehand": found.beforehand.chosen_is_best,
        "kendall_tau_raw": found.raw.tau, "regret_raw": found.raw.regret,
        "regret_raw_interval": found.raw.regret_interval, "chosen_is_best_raw": found.raw.chosen_is_best,
        "untied_pairs_raw": found.raw.num_untied,
        "chosen_beforehand": _plan_name(found, found.beforehand.chosen),
        "within_extra_memory": [
            {"extra_memory": share, "kendall_tau": one.tau, "untied_pairs": one.num_untied, "pairs": one.num_pairs,
             "regret": one.regret, "regret_interval": one.regret_interval} for share, one in found.within.items()
        ],
        "calibration_residual": times.residual, "calibration": times.model_dump(mode="json"), "rows": rows,
        # [round][row][step], through the layers that ran.
        "step_us": np.rint(1e6 * found.times.seconds).astype(int).tolist(), "turn": found.times.turn.tolist(),
    }  # fmt: skip


def _plan_name(found: CoreBound, number: int) -> str:
    row = found.rows[number]
    return f"{row.planner} {row.extra_memory:.0%}"


def _memory(name: str, trace: Trace, folder: str | None, seconds: float, seed: int) -> dict[str, Any]:
    planned = _planned(name, trace, folder, memory.PLANS)
    times = _calibrated(_MEMORY_SHAPE, None, seconds, seed)
    found = memory.memory_bound(name, planned, times, planned.planning.loads(), seconds=seconds, seed=seed, tell=_tell)
    return {
        "trace": name, "seed": seed,
        "model": trace.header.model, "synthetic": trace.header.synthetic, "kernel": found.kernel,
        "layers_run": found.num_layers, "num_rounds": found.num_rounds, "num_cells": len(found.cells),
        "median_error": found.median_error(), "span": found.span,
        "median_error_by_way": {way: found.median_error(way) for way in WAYS},
        "read_gb_per_s_range": found.read_gb_per_s, "calibration_residual": times.residual,
        "calibration": times.model_dump(mode="json"),
        "cells": [_cell_document(cell) for cell in found.cells],
    }  # fmt: skip


def _cell_document(cell: Cell) -> dict[str, Any]:
    return {
        "plan": cell.plan, "policy": cell.policy, "capacity": cell.capacity, "batch": cell.batch,
        "predicted_ms_per_step": cell.predicted_ms_per_step, "measured_ms_per_step": cell.ms_per_step,
        "error": cell.error(), "error_by_way": {way: cell.error(way) for way in WAYS}, "uploads": cell.link,
        "read_gb_per_s": cell.read_gb_per_s.tolist(), "kernel_share": cell.kernel_share.tolist(),
    }  # fmt: skip
