"""Distinct rows equal NumPy's, also where one number cannot hold a row."""

import numpy as np
import pytest

from moelab.domain.unique_rows import unique_rows


@pytest.mark.parametrize("most", [3, 40, 2**40])
@pytest.mark.parametrize("num_rows", [0, 1, 200])
def test_equals_numpy(most, num_rows):
    rows = np.random.default_rng(num_rows + most).integers(0, most, (num_rows, 3))
    rows = np.concatenate([rows, rows[: num_rows // 3]])
    got = unique_rows(rows)
    expected = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs.reshape(mine.shape))
