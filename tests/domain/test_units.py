"""units: GB is 1e9, GiB 2**30; what is printed can be read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelab.domain.units import (
    BYTES_OF_UNIT,
    GB,
    GIB,
    format_bytes,
    format_gb,
    format_gib,
    format_ms,
    format_params,
    parse_bytes,
)


def test_gb_is_decimal_and_gib_is_binary():
    assert GB == 10**9
    assert GIB == 2**30
    assert format_gb(594_156_000_000) == "594.2 GB"
    assert format_gib(68_719_476_736) == "64.0 GiB"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (24_772_608, "24.77 MB"),
        (999_999_999, "1.00 GB"),
        (18_421_383_168, "18.42 GB"),
        (2_052_816_000_000, "2.05 TB"),
    ],
)
def test_format_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text


def test_format_params_and_ms():
    assert format_params(1_026_408_232_448) == "1026.41 B"
    assert format_ms(0.01234) == "12.34 ms"


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("4096", 4096), (7, 7), (" 2 kb ", 2000), ("0.1GB", 10**8)],
)
def test_parse_bytes(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "24 Gb/s", "-1GB", "1e9", "12 XB", "0.5", "1.0001kB2"])
def test_parse_bytes_refuses(text):
    with pytest.raises(ValueError, match="expected"):
        parse_bytes(text)


@given(st.integers(0, 10**18), st.sampled_from(sorted(BYTES_OF_UNIT)))
def test_parse_bytes_reads_whole_numbers_of_every_unit_exactly(count, unit):
    assert parse_bytes(f"{count} {unit}") == count * BYTES_OF_UNIT[unit]


@given(st.integers(0, 10**16))
def test_format_bytes_is_right_to_its_last_digit(num_bytes):
    printed = parse_bytes(format_bytes(num_bytes))
    assert abs(printed - num_bytes) <= 0.0051 * max(num_bytes, 1)
