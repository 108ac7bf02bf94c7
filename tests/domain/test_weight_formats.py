"""weight formats: bytes of a matrix, against the libraries that write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelab.domain.weight_formats import WEIGHT_FORMATS, cache_bytes, vector_bytes, weight_format

# name: bits per weight as published (facts/models_and_sizing.md section 2; llama.cpp's type table)
PUBLISHED_BITS = {
    "float32": 32,
    "bf16": 16,
    "float16": 16,
    "int8_g32": 8.5,
    "int4_g32": 4.5,
    "mxfp4": 4.25,
    "Q8_0": 8.5,
    "Q5_1": 6.0,
    "Q5_0": 5.5,
    "Q4_1": 5.0,
    "Q4_0": 4.5,
    "IQ4_NL": 4.5,
    "Q6_K": 6.5625,
    "Q5_K": 5.5,
    "Q4_K": 4.5,
    "Q3_K": 3.4375,
    "Q2_K": 2.625,
    "IQ4_XS": 4.25,
    "IQ3_S": 3.4375,
    "IQ3_XXS": 3.0625,
    "IQ2_S": 2.5625,
    "IQ2_XS": 2.3125,
    "IQ2_XXS": 2.0625,
    "IQ1_M": 1.75,
    "IQ1_S": 1.5625,
}


def test_bits_per_weight_are_the_published_ones():
    assert {
        name: fmt.bits_per_weight for name, fmt in WEIGHT_FORMATS.items() if name != "fp8_128x128"
    } == PUBLISHED_BITS
    assert WEIGHT_FORMATS["fp8_128x128"].bits_per_weight == pytest.approx(8.002, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "rows", "columns", "num_bytes"),
    [
        ("int4_g32", 2048, 7168, 2048 * (3584 + 448)),
        ("int4_g32", 3, 33, 3 * (5 * 4 + 2 * 2)),  # 33 values: five int32 words, two scales
        ("int8_g32", 3, 33, 3 * (33 + 2 * 2)),
        ("fp8_128x128", 576, 7168, 576 * 7168 + 4 * 5 * 56),  # DeepSeek's kv_a_proj_with_mqa
        ("fp8_128x128", 1, 1, 1 + 4),
        ("mxfp4", 5760, 2880, 5760 * 90 * 17),  # gpt-oss: blocks 90 x 16 and 90 scales a row
        ("mxfp4", 2, 33, 2 * 2 * 17),
        ("Q8_0", 4, 64, 4 * 2 * 34),
        ("Q4_K", 4, 256, 4 * 144),
    ],
)
def test_bytes_of_known_shapes(name, rows, columns, num_bytes):
    assert WEIGHT_FORMATS[name](rows, columns) == num_bytes


def test_int4_is_what_compressed_tensors_packs():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    module = "compressed_tensors.compressors.pack_quantized.helpers"
    helpers = pytest.importorskip(module, reason="compressed-tensors is not installed")
    for rows, columns in ((4, 64), (3, 96), (5, 72)):
        packed = helpers.pack_to_int32(torch.zeros(rows, columns, dtype=torch.int8), 4)
        scales = rows * -(-columns // 32) * 2
        assert WEIGHT_FORMATS["int4_g32"](rows, columns) == packed.numel() * packed.element_size() + scales


@given(st.sampled_from(sorted(WEIGHT_FORMATS)), st.integers(0, 600), st.integers(0, 9))
def test_rows_add_up_and_more_is_never_less(name, rows, blocks):
    fmt = WEIGHT_FORMATS[name]
    columns = 256 * blocks
    assert fmt(rows + fmt.group_rows, columns) == fmt(rows, columns) + fmt(fmt.group_rows, columns)
    assert fmt(rows, columns) <= fmt(rows + 1, columns) <= fmt(rows + 1, columns + 256)


def test_gguf_formats_refuse_rows_of_a_broken_block():
    with pytest.raises(ValueError, match=r"Q4_K: expected rows of a multiple of 256 values, got 2880"):
        WEIGHT_FORMATS["Q4_K"](2880, 2880)


def test_unknown_names_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"weight format: expected one of .*got 'Q4_K_M'"):
        weight_format("Q4_K_M")
    with pytest.raises(ValueError, match=r"cache format: expected one of .*got 'int3'"):
        cache_bytes("int3", 128)
    with pytest.raises(ValueError, match="rows and columns >= 0"):
        WEIGHT_FORMATS["bf16"](-1, 4)


def test_vectors_and_cache_rows():
    assert vector_bytes("int4_g32", 10) == vector_bytes("bf16", 10) == 20
    assert vector_bytes("float32", 10) == 40
    assert cache_bytes("fp8_g128", 128) == 132
    assert cache_bytes("Q8_0", 576) == 612
