"""Linear layers on the kernels of the routed experts: the same model within the error of the format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moelab
from moelab.engine.dense import PACKED_FORMATS, KernelLinear, Rows, TorchLinear
from moelab.engine.engine import load
from moelab.engine.recording import record
from moelab.kernels import Pool, isa_table

NATIVE = [row.isa for row in isa_table() if row.supported and row.isa != "numba"]
pytestmark = pytest.mark.skipif(not NATIVE, reason="native kernels are not built")
NANO = moelab.shipped("nano/model")
# Largest mean KL divergence (nats) over 60 random tokens against torch's float32: seen 1e-7, 0.00014, 0.029, 0.20.
LIMIT = {"float32": 1e-6, "bf16": 0.001, "int8": 0.06, "int4": 0.4}


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    return rng.integers(2, 4096, 60).tolist()


@pytest.fixture(scope="module")
def exact(tokens):
    with load(NANO, activation="f32", dense_dtype="float32", dense_weights="torch") as engine:
        return engine.forward(tokens).log_softmax(-1)


@pytest.mark.parametrize("dense_weights", PACKED_FORMATS)
def test_same_model_within_the_error_of_the_format(dense_weights, tokens, exact):
    with load(NANO, activation="f32", dense_dtype="float32", dense_weights=dense_weights) as engine:
        assert engine.dense_weights == dense_weights
        assert f"{dense_weights} weights" in repr(engine)
        together = engine.forward(tokens).log_softmax(-1)
        difference = float((together.exp() * (together - exact)).sum(-1).mean())  # KL divergence
        assert abs(difference) < LIMIT[dense_weights]
        assert not torch.equal(together, exact)  # or the kernels were not asked
        assert engine.generate(tokens[:5], 4).token_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_linear_equals_torch_on_numbers_that_the_format_holds(dtype):
    rng = np.random.default_rng(1)
    # Powers of two times small integers: exact in int8 with one group scale, and so are the activations.
    weight = torch.from_numpy(rng.integers(-127, 128, (70, 64)).astype(np.float32)) / 64
    weight[:, ::32] = 127 / 64
    x = torch.from_numpy(rng.integers(-127, 128, (2, 3, 64)).astype(np.float32)).to(dtype)
    x[..., ::32] = 127
    bias = torch.arange(70).to(dtype)
    with Pool() as pool:
        for b in (None, bias):
            ours = KernelLinear(Rows([weight]), b, "int8_g32", None, pool)
            theirs = TorchLinear(weight, None if b is None else b.float())(x.float())
            assert ours(x).dtype == dtype
            torch.testing.assert_close(
                ours(x).float(), theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3
            )
            first = ours(x[0, 0][None])
            ours(x[1])
            torch.testing.assert_close(first, ours(x[0, 0][None]))  # a result stays when the kernel runs again


@pytest.mark.parametrize(
    ("choice", "path"),
    [
        ({"dense_weights": "int8"}, "int8 weights, int8 activations on generic;"),
        ({"dense_weights": "float32"}, "float32 weights, f32 activations on generic;"),
        ({"dense_weights": "torch", "dense_dtype": "float32"}, "float32 on cpu"),
    ],
)
def test_the_dense_path_is_told(choice, path):
    """In the summary, in every generation and in the header of every trace that the engine records."""
    with load(NANO, device="cpu", isa="generic", **choice) as engine:
        assert engine.dense_path.startswith(path)
        assert engine.dense_path in repr(engine)
        with record(engine) as trace:
            assert engine.generate([1, 2, 3], 2).dense_path == engine.dense_path
        assert engine.dense_path in trace.header.engine


@pytest.mark.parametrize(("dense_dtype", "chosen"), [(None, "bf16"), ("float32", "float32"), ("bfloat16", "bf16")])
def test_the_kernels_are_chosen_on_a_cpu(dense_dtype, chosen):
    with load(NANO, device="cpu", dense_dtype=dense_dtype) as engine:
        assert engine.dense_weights == chosen
    with load(NANO, device="cpu", isa="numba", dense_dtype=dense_dtype) as engine:
        assert engine.dense_weights is None


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="dense_weights: expected one of torch, float32, bf16, int8, int4, got 'int2'"):
        load(NANO, dense_weights="int2")
    with pytest.raises(ValueError, match="dense_weights: expected a native isa, got numba"):
        load(NANO, dense_weights="int8", isa="numba")
