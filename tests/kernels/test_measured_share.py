"""The measured kernel that stands for a plan: of its format, of the ISA chosen first; what is missing is said."""

import itertools

import numpy as np
import pytest

import moelab
from moelab.domain.machine import Machine, NumaNode
from moelab.kernels.isa import AUTOMATIC_ORDER
from moelab.kernels.job import ACTIVATIONS_OF_FORMAT
from moelab.kernels.measured_share import kernel_share
from tests.seeded_traces import plan_for, seeded_trace

ROWS = [
    f"{isa}/{weight_format}/{activation}"
    for isa in AUTOMATIC_ORDER
    for weight_format, modes in ACTIVATIONS_OF_FORMAT.items()
    for activation in modes
]


def machine(rows):
    node = NumaNode(name="node0", cores=(0,), memory_bytes=2**30, read_gb_per_s={1: 20.0})
    return Machine(name="made up", source="calibration", nodes=(node,), kernel_efficiency=rows)


@pytest.mark.parametrize("seed", range(30))
def test_beside_a_naive_search(seed):
    """Whatever was measured, in whatever order: the first row of ISAs and activations by rank that is there."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(ROWS)[: rng.integers(1, 12)].tolist()
    rows = dict(zip(names, rng.uniform(0.2, 1.0, len(names)).tolist(), strict=True))
    for weight_format, modes in ACTIVATIONS_OF_FORMAT.items():
        said = kernel_share(machine(rows), weight_format)
        wanted = [f"{isa}/{weight_format}/{mode}" for isa, mode in itertools.product(AUTOMATIC_ORDER, modes)]
        there = [name for name in wanted if name in rows]
        if there:
            assert (said.kernel, said.share, said.is_measured) == (there[0], rows[there[0]], True)
        else:
            assert said.share == min(rows.values())
            assert not said.is_measured
            assert said.kernel.endswith(f"the slowest measured: machine made up has none of {weight_format}")


def test_activation_and_isa_that_are_named():
    rows = {"avx512/int4_g32/int8": 0.9, "avx512/int4_g32/bf16": 0.6, "generic/int4_g32/int8": 0.1,
            "avx2/bf16/bf16": 0.8}  # fmt: skip
    assert kernel_share(machine(rows), "int4_g32", activation="bf16").share == 0.6
    assert kernel_share(machine(rows), "int4_g32", isa="generic").kernel == "generic/int4_g32/int8"
    said = kernel_share(machine(rows), "bf16", isa="avx512")
    assert (said.share, said.is_measured) == (0.1, False)
    assert "generic/int4_g32/int8, the slowest measured: machine made up has none of avx512/bf16" in said.kernel


def test_nothing_measured_is_a_ceiling_that_says_so():
    said = kernel_share(machine({}), "int4_g32")
    assert (said.share, said.is_measured) == (1.0, False)
    assert said.kernel == "none: machine made up has no measured kernel, 1 is a ceiling"


@pytest.mark.parametrize("order", [1, -1])
def test_a_simulation_takes_the_row_of_the_plans_format(order):
    """Half of the rate, twice the time; which row stands first in the machine does not matter."""
    trace = seeded_trace(3, expert_bytes=(1000, 1000, 1000))
    plan = plan_for(trace)
    own = plan.format_of_tier["node0"].weight_format
    other = next(name for name in ACTIVATIONS_OF_FORMAT if name != own)
    here = machine(dict([(f"avx2/{other}/bf16", 0.9), (f"avx2/{own}/bf16", 0.45)][::order]))
    said = moelab.simulate(trace, plan, here, phase="decode", progress=False).prediction
    assert (said["efficiency"], said["efficiency_of"]) == (0.45, f"avx2/{own}/bf16")
    given = moelab.simulate(trace, plan, here, phase="decode", efficiency=0.9, progress=False).prediction
    assert given["efficiency_of"] == "as given"
    assert said["predicted_ms_per_token"] == pytest.approx(2 * given["predicted_ms_per_token"])
    none = moelab.simulate(trace, plan, machine({}), phase="decode", progress=False).prediction
    assert none["efficiency"] == 1.0
    assert "1 is a ceiling" in none["efficiency_of"]
