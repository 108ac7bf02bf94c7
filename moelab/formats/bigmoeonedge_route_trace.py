"""Reader of BigMoeOnEdge's ``# route_trace v1``: ordered routing with gate weights and RECORDED RESIDENCY.

A llama.cpp-based engine that streams experts through a byte-budgeted cache writes, for each (token, layer,
slot), the expert, its gate weight, whether the cache held it (0 miss, 1 hit, 2 prefetch hit) and the
bytes it read. Comment lines before the table name the model, its shape and the expert bytes of each layer.
All prefill tokens of a turn are one forward pass; the last layer routes one of them only, so the other
rows there are ``NO_EXPERT``. A row that the engine marks ``dropped`` was not executed: ``NO_EXPERT`` too.

The trace gets two extras, uint8 ``residency`` [T, L, K] (``NOT_RECORDED`` where unrouted) and uint32
``read_bytes`` [T, L, K]. Not in the file: the model's own K where the engine overrode it, domains, token ids.
Floor 1. Source: Helldez/BigMoeOnEdge, docs/bench-data.
"""

from __future__ import annotations

import io
import re
from pathlib import Path, PureWindowsPath

import numpy as np

from moelab.domain.trace import NO_EXPERT, GateWeightKind, Phase, TokenTable, Trace, TraceHeader

FIRST_LINE = "# route_trace v1"
NOT_RECORDED = 255
"""Sentinel of ``residency``: this slot routed nothing."""

COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert", "weight", "residency", "expert_bytes")
_MODEL = re.compile(r"# model=(.*) arch=(\S+) n_layer=(\d+) n_expert=(\d+) n_expert_used=(\d+)\s*")
_LAYER = re.compile(r"# layer=(\d+) expert_bytes=(\d+)(?: .*)?\s*")
_QUANTIZATION = re.compile(r"(?:^|[-_.])((?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*))$", re.IGNORECASE)


def matches(path: Path) -> bool:
    """True for a file that begins with ``# route_trace v1``."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(FIRST_LINE)) == FIRST_LINE.encode()


def read(path: Path, *, native_top_k: int | None = None, licence: str = "unknown") -> Trace:
    """The whole file; ``native_top_k`` is the model's own K where it is known to differ from the engine's.

    Raises ``ValueError`` that names the file for another version, a missing column or layer, ids out of
    range, a slot that occurs twice or is missing (a truncated file).
    """
    text = path.read_bytes().decode("utf-8", "replace")
    lines = text.split("\n", 512)
    num_comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    name, arch, num_experts, top_k, bytes_of_layer = _comments(path, lines[:num_comments])
    columns = _table(path, "\n".join(lines[num_comments:]))
    layers = np.unique(columns["layer"])
    unknown = [int(layer) for layer in layers if layer not in bytes_of_layer]
    if unknown:
        raise ValueError(f"{path} routes in layer {unknown[0]}, expected a line `# layer={unknown[0]} expert_bytes=`")
    for column, stop in (("expert", num_experts), ("slot", top_k), ("phase", 2), ("residency", 3)):
        wrong = (columns[column] < 0) | (columns[column] >= stop)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{path}, data row {row + 1}: {column} is {columns[column][row]}, expected 0 to {stop - 1}"
            )

    # A phase of a turn precedes the next, so that (turn, phase, step) in rising order is the order of execution.
    keys = np.stack([columns["turn"], columns["phase"], columns["step"]], axis=1)
    tokens, token = np.unique(keys, axis=0, return_inverse=True)
    token, layer = token.ravel(), np.searchsorted(layers, columns["layer"])
    shape = (len(tokens), len(layers), top_k)
    place = (token, layer, columns["slot"])
    _check_slots(path, np.bincount(np.ravel_multi_index(place, shape), minlength=np.prod(shape)), shape, tokens)

    dropped = columns["dropped"] != 0
    experts = np.full(shape, NO_EXPERT, np.uint16)
    experts[place] = np.where(dropped, NO_EXPERT, columns["expert"])
    gate_weights = np.zeros(shape, np.float16)
    gate_weights[place] = np.where(dropped, 0, columns["weight"])
    residency = np.full(shape, NOT_RECORDED, np.uint8)
    residency[place] = np.where(dropped, NOT_RECORDED, columns["residency"])
    read_bytes = np.zeros(shape, np.uint32)
    read_bytes[place] = columns["expert_bytes"]

    turn, phase, position = tokens.T
    # One pass for all prefill tokens of a turn, one for each decode token.
    new_pass = np.ones(len(tokens), bool)
    new_pass[1:] = (turn[1:] != turn[:-1]) | (phase[1:] != phase[:-1]) | (phase[1:] == Phase.DECODE)
    quantization = _QUANTIZATION.search(name)
    header = TraceHeader(
        model=name, model_type=arch, num_layers=len(layers), num_experts=num_experts, top_k=top_k,
        native_top_k=native_top_k, model_layer_of_layer=tuple(layers.tolist()),
        expert_bytes=tuple(bytes_of_layer[int(layer)] for layer in layers),
        gate_weight_kind=_kind(columns, place, shape),
        slot_order="rank", engine="BigMoeOnEdge (llama.cpp)",
        quantization=quantization.group(1) if quantization else "unknown", licence=licence,
        provenance=f"file {path.name}, {FIRST_LINE.removeprefix('# ')}", synthetic=False,
    )  # fmt: skip
    table = TokenTable.build(step=new_pass.cumsum() - 1, request=turn, position=position, phase=phase)
    return Trace(header, experts, gate_weights, table, {"residency": residency, "read_bytes": read_bytes})


def _comments(path: Path, lines: list[str]) -> tuple[str, str, int, int, dict[int, int]]:
    """(model, arch, E, K, expert bytes by model layer) of the lines before the table."""
    if not lines or lines[0].strip() != FIRST_LINE:
        raise ValueError(f"{path} begins with {lines[0] if lines else 'a table'!r}, expected {FIRST_LINE!r}")
    models = [match for line in lines if (match := _MODEL.fullmatch(line))]
    if len(models) != 1:
        raise ValueError(
            f"{path} has {len(models)} lines `# model= arch= n_layer= n_expert= n_expert_used=`, expected 1: "
            "the comment lines are damaged"
        )
    model, arch, _, num_experts, top_k = models[0].groups()
    layers = [match for line in lines if (match := _LAYER.fullmatch(line))]
    # PureWindowsPath splits at both kinds of slashes; a folder of the recording machine says nothing here.
    name = PureWindowsPath(model).name.removesuffix(".gguf")
    return name, arch, int(num_experts), int(top_k), {int(m.group(1)): int(m.group(2)) for m in layers}


def _table(path: Path, text: str) -> dict[str, np.ndarray]:
    """Columns by NAME, as the format asks; ``dropped`` is optional and 0 without."""
    import pyarrow as pa
    from pyarrow import csv

    types = {name: pa.float64() if name == "weight" else pa.int64() for name in (*COLUMNS, "dropped")}
    try:
        table = csv.read_csv(io.BytesIO(text.encode()), convert_options=csv.ConvertOptions(column_types=types))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole route_trace table ({error}): it is truncated or damaged") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} has the columns {', '.join(table.column_names)}, expected {', '.join(missing)} too")
    if any(table[name].null_count for name in COLUMNS) or not len(table):
        raise ValueError(f"{path} has no rows or empty fields, expected a number in every column: it is damaged")
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    has_dropped = "dropped" in table.column_names
    columns["dropped"] = table["dropped"].to_numpy() if has_dropped else np.zeros(len(table), np.int64)
    return columns


def _check_slots(path: Path, count: np.ndarray, shape: tuple[int, int, int], tokens: np.ndarray) -> None:
    """Each (token, layer) has all K slots once, or none of them in prefill."""
    count = count.reshape(shape)
    none = (count == 0).all(2) & (tokens[:, 1] == Phase.PREFILL)[:, None]
    wrong = np.argwhere(~((count == 1).all(2) | none))
    if len(wrong):
        token, layer = wrong[0]
        turn, phase, step = tokens[token].tolist()
        raise ValueError(
            f"{path}: turn {turn}, {Phase(phase).name.lower()} step {step}, layer {layer} of the trace has slots "
            f"{np.repeat(np.arange(shape[2]), count[token, layer]).tolist()}, expected 0 to {shape[2] - 1} once each: "
            "the file is truncated or damaged"
        )


def _kind(columns: dict[str, np.ndarray], place: tuple, shape: tuple[int, int, int]) -> GateWeightKind:
    """``normalised`` where the weights of every token and layer sum to 1; the file does not say."""
    sums = np.bincount(place[0] * shape[1] + place[1], columns["weight"])
    return "normalised" if np.allclose(sums[sums != 0], 1, atol=2e-3) else "unknown"
