"""Published rates beside what this room says of them: checks of the fit, batches, prefill, as tables.  Floor 2.

The same functions that predict are asked for the published case, with everything that its page says; nothing is fitted
here. It does not judge: errors stand in the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moelab.sizing.computing import UNITS, ComputeFit, compute_fit
from moelab.sizing.outside_points import BATCH_POINTS, CHECK_POINTS, BatchPoint
from moelab.sizing.recipes import recipe
from moelab.sizing.size import size
from moelab.sizing.sizing import Sizing
from moelab.sizing.speed import speed_fit

if TYPE_CHECKING:
    import pandas as pd


def size_of_batch(point: BatchPoint) -> Sizing:
    """The published batch as `size` sees it: uniform routing, a cache of 1,024 tokens a stream."""
    one = size(point.model, point.machine, format=point.weights, context=1024)
    expert_bytes = recipe(point.weights).expert_bytes(one.spec)
    on_gpus = round(point.experts_on_gpus * one.spec.num_moe_layers * expert_bytes)
    return size(
        point.model, point.machine, format=point.weights, batch=point.batch, context=1024,
        routed_fast_bytes=on_gpus or None,
    )  # fmt: skip


def check_table() -> pd.DataFrame:
    """One row for each rate that was found after the fit: prediction, error, does the interval hold it."""
    import pandas as pd

    rows = []
    for point in CHECK_POINTS:
        assert point.bandwidth_gb_per_s is not None
        predicted = speed_fit(point.mode).predict(1e9 * point.cpu_gb_per_token, point.bandwidth_gb_per_s)
        low, high = predicted.interval_tok_per_s
        rows.append(
            {
                "id": point.id, "weights": point.weights, "hardware": point.hardware,
                "gb_per_s": point.bandwidth_gb_per_s, "kind": point.bandwidth_kind,
                "published_tok_per_s": point.tok_per_s, "predicted_tok_per_s": predicted.tok_per_s,
                "error": predicted.tok_per_s / point.tok_per_s - 1, "interval": f"{low:.1f} to {high:.1f}",
                "inside": "yes" if low <= point.tok_per_s <= high else "no", "source": point.source, "note": point.note,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def batch_table() -> pd.DataFrame:
    """One row for each published batch: rate, prediction, error, interval."""
    import pandas as pd

    rows = []
    for point in BATCH_POINTS:
        predicted = size_of_batch(point).prediction
        assert predicted is not None
        low, high = predicted.interval_tok_per_s
        rows.append(
            {
                "id": point.id, "model": point.model, "hardware": point.hardware, "batch": point.batch,
                "experts_on_gpus": point.experts_on_gpus, "published_tok_per_s": point.tok_per_s,
                "predicted_tok_per_s": predicted.tok_per_s, "error": predicted.tok_per_s / point.tok_per_s - 1,
                "interval": f"{low:.1f} to {high:.1f}", "source": point.source, "note": point.note,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def prefill_table() -> list[tuple[ComputeFit, pd.DataFrame]]:
    """For each unit the fit and one row for each published prefill rate with its leave-one-out prediction."""
    import pandas as pd

    tables = []
    for unit in UNITS:
        fit = compute_fit(unit)
        rows = [
            {
                "id": point.id, "model": point.model, "hardware": point.hardware, "cores": point.num_cores,
                "top_k": point.top_k, "prompt": point.prompt, "published_tok_per_s": point.tok_per_s,
                "left_out_tok_per_s": float(left_out), "error": float(left_out) / point.tok_per_s - 1,
                "source": point.source,
            }
            for point, left_out in zip(fit.points, fit.left_out, strict=True)
        ]  # fmt: skip
        tables.append((fit, pd.DataFrame(rows)))
    return tables
