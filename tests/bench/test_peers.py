"""Every peer against float64: on weights that its format holds exactly, and on weights that it must round."""

import subprocess
import sys

import numpy as np
import pytest

from moelab.bench.peers import PEERS
from moelab.bench.peers.int4_groups import quantise_int4
from moelab.bench.peers.peer import NOT_INSTALLED
from moelab.kernels.layout import bf16_to_float32

NUM_EXPERTS, HIDDEN = 12, 256
MODULE_OF = {name: "kt_kernel" if name.startswith("kt-") else name.split()[0] for name in PEERS}
PACKAGE_OF = {"torch": "torch", "ggml": "ggml-python", "kt_kernel": "kt-kernel"}

# Largest ||peer - truth|| / ||truth||. Seen in 60 steps of 1 to 40 tokens: on the grid, where only activations are
# rounded, bf16 0.7%, 8 bits 1.7%, and 3.2% in Q4_K, which rounds 6-bit scales and minima too; otherwise
# bf16 0.6% and 4 bits 11% to 20%. A scale of the wrong group or row gives more than 50%.
GRID_TOLERANCE = {"torch": 0.01, "ggml Q4_0": 0.025, "ggml Q4_K": 0.045, "kt": 0.025}
BITS = {
    "torch bf16 linear": 16.0,
    "torch bf16 prepacked": 16.0,
    "torch _weight_int4pack_mm": 5.0,
    "ggml Q4_0 plain": 4.5,
    "ggml Q4_0 repacked": 4.5,
    "ggml Q4_K plain": 4.5,
    "ggml Q4_K repacked": 4.5,
    "kt-kernel AMXInt4_KGroup": 5.0,
}


def usable(name):
    """The class, or a skip whose reason stands in allowed_skips.txt."""
    peer = PEERS[name]
    reason = peer.available()
    if reason == NOT_INSTALLED:
        pytest.skip(f"{PACKAGE_OF[MODULE_OF[name]]} is not installed")
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return peer


def intermediate_of(name):
    return 256 if "Q4_K" in name else 128  # super-blocks of 256 columns


def on_grid(rng, rows, columns):
    """Integers from -8 to 7, both in every group, times a power of two of the row."""
    q = rng.integers(-8, 8, (rows, columns))
    q[:, 3::32], q[:, 17::32] = -8, 7
    return (q * np.exp2(rng.integers(-8, -5, (rows, 1)))).astype(np.float32)


def spread(rng, rows, columns):
    """Normal, with scales that differ by up to a factor 8 between neighbouring groups."""
    scale = np.exp2(rng.uniform(-1.5, 1.5, (rows, columns // 32, 1))) / 16
    return (rng.standard_normal((rows, columns // 32, 32)) * scale).reshape(rows, columns).astype(np.float32)


def layer(make, intermediate, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((intermediate, HIDDEN), (intermediate, HIDDEN), (HIDDEN, intermediate))
    return [tuple(make(rng, *shape) for shape in shapes) for _ in range(NUM_EXPERTS)]


def step(seed, num_tokens, top_k):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(NUM_EXPERTS)[:top_k] for _ in range(num_tokens)])
    return rng.standard_normal((num_tokens, HIDDEN)).astype(np.float32), ids, rng.random(ids.shape, np.float32)


def truth(experts, x, ids, gates):
    y = np.zeros(x.shape)
    for t, k in np.ndindex(ids.shape):
        gate, up, down = (matrix.astype(np.float64) for matrix in experts[ids[t, k]])
        a = gate @ x[t]
        y[t] += gates[t, k] * (down @ (a / (1 + np.exp(-a)) * (up @ x[t])))
    return y


def worst_error(peer, experts):
    """Steps of several sizes, one of them twice, so that kept graphs and buffers are met again."""
    errors = []
    for seed, (num_tokens, top_k) in enumerate([(1, 8), (7, 4), (1, 8), (40, 8), (3, 1)]):
        x, ids, gates = step(seed, num_tokens, top_k)
        y, expected = peer.forward(x, ids, gates), truth(experts, x, ids, gates)
        assert y.shape == x.shape
        assert y.dtype == np.float32
        errors.append(np.linalg.norm(y - expected) / np.linalg.norm(expected))
    return max(errors)


@pytest.mark.parametrize("name", PEERS)
def test_names_and_formats_are_listed(name):
    assert PEERS[name].name == name
    assert name in BITS


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("name", PEERS)
def test_exact_weights_leave_the_error_of_activations(name, num_threads):
    experts = layer(on_grid, intermediate_of(name))
    peer = usable(name)(experts, NUM_EXPERTS, HIDDEN, intermediate_of(name), num_threads)
    tolerance = next(value for prefix, value in GRID_TOLERANCE.items() if name.startswith(prefix))
    assert worst_error(peer, experts) < tolerance
    peer.close()


@pytest.mark.parametrize("name", PEERS)
def test_groups_of_different_scale_from_a_callable(name):
    """Weights made one expert at a time; a scale that meets the wrong group is far outside the tolerance."""
    experts = layer(spread, intermediate_of(name), seed=1)
    peer = usable(name)(experts.__getitem__, NUM_EXPERTS, HIDDEN, intermediate_of(name), 1)
    assert worst_error(peer, experts) < (0.01 if name == "torch bf16 linear" else 0.25)
    peer.close()


@pytest.mark.parametrize("name", PEERS)
def test_weight_bytes(name):
    intermediate = intermediate_of(name)
    peer = usable(name)(layer(on_grid, intermediate), NUM_EXPERTS, HIDDEN, intermediate, 1)
    assert peer.weight_bytes_per_expert * 8 == BITS[name] * 3 * HIDDEN * intermediate
    assert peer.version()
    peer.close()
    peer.close()  # twice does no harm


@pytest.mark.parametrize("name", PEERS)
def test_what_would_leave_the_arrays_is_refused(name):
    peer = usable(name)(layer(on_grid, intermediate_of(name)), NUM_EXPERTS, HIDDEN, intermediate_of(name), 1)
    x, ids, gates = step(0, 2, 4)
    for bad in ((x[:, 1:], ids, gates), (x, ids + NUM_EXPERTS, gates), (x, ids, gates[:1]), (x[:1], ids, gates)):
        with pytest.raises(ValueError, match="expected"):
            peer.forward(*bad)
    peer.close()
    with pytest.raises(ValueError, match="expected"):
        PEERS[name](layer(on_grid, 128), NUM_EXPERTS, HIDDEN, 96, 1)


@pytest.mark.parametrize("name", PEERS)
def test_a_missing_peer_is_a_row_that_says_so(name, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE_OF[name], None)  # what Python keeps for a module that may not be imported
    assert PEERS[name].available() == "not installed"


def test_importing_the_peers_imports_none_of_them():
    program = "import sys, moelab.bench.peers; print(sorted({'torch', 'ggml', 'kt_kernel'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stdout_is_left_to_the_table(capfd):
    """kt-kernel prints from C while a layer is made and destroyed."""
    peer = usable("kt-kernel AMXInt4_KGroup")(layer(on_grid, 128), NUM_EXPERTS, HIDDEN, 128, 1)
    peer.forward(*step(0, 1, 4))
    peer.close()
    assert capfd.readouterr().out == ""


def test_quantise_int4():
    """The value of largest magnitude of each group becomes -8; a grid and a group of zeros come back exactly."""
    grid = on_grid(np.random.default_rng(0), 5, 96)
    grid[2, 32:64] = 0
    q, scale = quantise_int4(grid)
    assert q.min() == -8
    assert q.max() == 7
    np.testing.assert_array_equal(q.reshape(5, 3, 32) * bf16_to_float32(scale)[..., None], grid.reshape(5, 3, 32))
    with pytest.raises(ValueError, match="multiple of 32"):
        quantise_int4(grid[:, :40])
