"""LatentCache: rows grow and move without losing what they hold."""

import pytest
import torch

from moelab.engine.cache import FIRST_CAPACITY, LatentCache


@pytest.mark.parametrize("grow_in_step", [False, True])
def test_rows_move_after_the_cache_grew(grow_in_step):
    """A step runs in inference mode; a row is moved between two steps."""
    cache = LatentCache(num_layers=2, num_rows=3, width=5, dtype=torch.float32, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    length = FIRST_CAPACITY + 7
    with torch.inference_mode(grow_in_step):
        cache.reserve(length)
        held = [torch.randn(length, 5, generator=generator) for _ in range(2)]
        for layer, values in zip(cache.layers, held, strict=True):
            layer[2, :length] = values
        cache.lengths[:] = [4, 9, length]
    cache.move(2, 0)
    assert cache.lengths == [length, 9, 0]
    assert cache.capacity >= length
    for layer, values in zip(cache.layers, held, strict=True):
        torch.testing.assert_close(layer[0, :length], values, rtol=0, atol=0)
