"""Weight formats: from the shape of a matrix to its bytes, exactly.  Floor 0.

`WEIGHT_FORMATS[name](rows, columns)` gives the bytes of a matrix `[rows, columns]` (rows are
outputs, columns the reduction axis, as in HF's `nn.Linear.weight`): packed values and their
scales, nothing else. It does not know file headers, alignment or the few bytes of metadata
tensors (`weight_shape` of compressed-tensors).

What happens when a row is not a whole number of blocks differs by format, so it is decided
per format and never by a common rule:
- compressed-tensors int4 packs 8 values in one int32 word and keeps one scale for the last,
  shorter group: both round up per row. int8 needs no word padding.
- FP8 with 128 x 128 blocks keeps one float32 scale for each block that is begun, in both axes.
- MXFP4 rounds each row up to whole blocks of 32.
- GGUF cannot hold such a row at all (ggml demands whole blocks; llama-quantize then picks
  another format on its own), so these refuse by name instead of guessing.

Whole-model recipes such as Q4_K_M or UD-Q2_K_XL are mixtures chosen tensor by tensor and are
not formats: name the format of each part instead.

Vectors (norms, biases, attention sinks) are never quantised: `vector_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_CT = "compressed-tensors 0.20 pack-quantized (facts/models_and_sizing.md section 8)"
_GGML = "gguf 0.19 GGML_QUANT_SIZES"


@dataclass(frozen=True)
class WeightFormat:
    """One storage format.

    `group_rows x group_columns` values share one scale; 1 x 1 means no grouping. A row piece of a
    plan can only be stored on its own when it starts at a multiple of `group_rows`.
    """

    name: str
    bytes_of_matrix: Callable[[int, int], int]
    group_rows: int
    group_columns: int
    source: str

    def __call__(self, rows: int, columns: int) -> int:
        """Bytes of a matrix `[rows, columns]`. ValueError where the format cannot hold it."""
        if rows < 0 or columns < 0:
            raise ValueError(f"{self.name}: expected rows and columns >= 0, got {rows} x {columns}; pass a shape")
        return self.bytes_of_matrix(rows, columns)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of a matrix of whole blocks, scales included."""
        side = 8192  # a multiple of every group in WEIGHT_FORMATS
        return 8 * self(side, side) / side**2


def _ceil_div(count: int, group: int) -> int:
    return -(-count // group)


def _plain(name: str, value_bytes: int) -> WeightFormat:
    return WeightFormat(name, lambda rows, columns: rows * columns * value_bytes, 1, 1, f"{value_bytes} B a value")


def _int_grouped(name: str, bits: int, word_bytes: int, group: int) -> WeightFormat:
    values_per_word = 8 * word_bytes // bits

    def bytes_of_matrix(rows: int, columns: int) -> int:
        packed = _ceil_div(columns, values_per_word) * word_bytes
        return rows * (packed + 2 * _ceil_div(columns, group))  # one bf16 scale per group

    return WeightFormat(name, bytes_of_matrix, 1, group, _CT)


def _fp8_blocks(name: str, side: int) -> WeightFormat:
    def bytes_of_matrix(rows: int, columns: int) -> int:
        return rows * columns + 4 * _ceil_div(rows, side) * _ceil_div(columns, side)

    return WeightFormat(name, bytes_of_matrix, side, side, "HF fp8 weight_block_size, float32 weight_scale_inv")


def _mxfp4() -> WeightFormat:
    return WeightFormat(
        "mxfp4",
        lambda rows, columns: rows * _ceil_div(columns, 32) * 17,
        1,
        32,
        "OCP MX: 16 B of E2M1 pairs + 1 B E8M0 scale per 32 (gpt-oss blocks and scales)",
    )


def _ggml(name: str, block: int, block_bytes: int) -> WeightFormat:
    def bytes_of_matrix(rows: int, columns: int) -> int:
        if columns % block:
            raise ValueError(
                f"{name}: expected rows of a multiple of {block} values, got {columns}; GGUF cannot "
                f"hold them and llama-quantize would switch format: name one of smaller blocks "
                f"(Q8_0, Q5_0, Q4_0: 32), or bf16"
            )
        return rows * (columns // block) * block_bytes

    return WeightFormat(name, bytes_of_matrix, 1, block, _GGML)


_GGML_BLOCKS: dict[str, tuple[int, int]] = {
    # name: (values per block, bytes per block)
    "Q8_0": (32, 34),
    "Q5_1": (32, 24),
    "Q5_0": (32, 22),
    "Q4_1": (32, 20),
    "Q4_0": (32, 18),
    "IQ4_NL": (32, 18),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q4_K": (256, 144),
    "Q3_K": (256, 110),
    "Q2_K": (256, 84),
    "IQ4_XS": (256, 136),
    "IQ3_S": (256, 110),
    "IQ3_XXS": (256, 98),
    "IQ2_S": (256, 82),
    "IQ2_XS": (256, 74),
    "IQ2_XXS": (256, 66),
    "IQ1_M": (256, 56),
    "IQ1_S": (256, 50),
}

WEIGHT_FORMATS: dict[str, WeightFormat] = {
    weight_format.name: weight_format
    for weight_format in (
        _plain("float32", 4),
        _plain("bf16", 2),
        _plain("float16", 2),
        _int_grouped("int8_g32", 8, 1, 32),
        _int_grouped("int4_g32", 4, 4, 32),
        _fp8_blocks("fp8_128x128", 128),
        _mxfp4(),
        *(_ggml(name, block, block_bytes) for name, (block, block_bytes) in _GGML_BLOCKS.items()),
    )
}

# One row is what one head (or one MLA latent) keeps for one token.
CACHE_FORMATS: dict[str, Callable[[int], int]] = {
    "float32": lambda values: 4 * values,
    "bf16": lambda values: 2 * values,
    "float16": lambda values: 2 * values,
    "fp8": lambda values: values,  # e4m3 with one scale per tensor: no bytes per token
    "fp8_g128": lambda values: values + 4 * _ceil_div(values, 128),  # float32 scale per 128
    "Q8_0": lambda values: WEIGHT_FORMATS["Q8_0"](1, values),
    "Q4_0": lambda values: WEIGHT_FORMATS["Q4_0"](1, values),
}


def weight_format(name: str) -> WeightFormat:
    """The format called `name`; ValueError that lists the known ones."""
    if name not in WEIGHT_FORMATS:
        raise ValueError(
            f"weight format: expected one of {', '.join(WEIGHT_FORMATS)}, got {name!r}; whole-model "
            "recipes such as Q4_K_M are mixtures: name the format of each part"
        )
    return WEIGHT_FORMATS[name]


def vector_bytes(name: str, length: int) -> int:
    """Bytes of an unquantised vector that lies beside matrices of format `name`.

    float32 beside float32, else 2 bytes a value (bf16, as checkpoints and engines keep norms,
    biases and sinks).
    """
    return length * (4 if weight_format(name).name == "float32" else 2)


def cache_bytes(name: str, values: int) -> int:
    """Bytes of one cached row of `values` numbers in cache format `name`; ValueError if unknown."""
    if name not in CACHE_FORMATS:
        raise ValueError(
            f"cache format: expected one of {', '.join(CACHE_FORMATS)}, got {name!r}; "
            "bf16 is what engines use when nothing is said"
        )
    return CACHE_FORMATS[name](values)
