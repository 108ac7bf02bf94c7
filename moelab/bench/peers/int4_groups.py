"""Signed int4 in groups of 32 columns with one bf16 scale, for the peers that take such weights.

The scale is that of ggml's Q4_0: the value of largest magnitude becomes -8. So weights that lie on such a grid keep
their value in every 4-bit peer and only activations differ. Does not know how a peer packs nibbles. Floor 6.
"""

from __future__ import annotations

import numpy as np

from moelab.kernels.layout import bf16_to_float32, float32_to_bf16

GROUP = 32


def quantise_int4(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, C] -> (int8 [R, C] from -8 to 7, bf16 bits uint16 [R, C/32]); raises ``ValueError`` if C % 32."""
    rows, columns = weights.shape
    if columns % GROUP:
        raise ValueError(f"expected a multiple of {GROUP} columns, got {columns}")
    groups = weights.reshape(rows, columns // GROUP, GROUP)
    largest, smallest = groups.max(-1), groups.min(-1)
    scale = float32_to_bf16(np.where(largest > -smallest, largest, smallest) / np.float32(-8))
    divisor = bf16_to_float32(scale)
    divisor = np.where(divisor == 0, np.float32(1), divisor)
    q = np.rint(groups / divisor[..., None])
    return np.clip(q, -8, 7, out=q).astype(np.int8).reshape(rows, columns), scale
