"""Floor 1: the routed experts of one layer on the CPU, and what they stand on.

``RoutedExperts`` computes, ``ExpertLayout`` and ``ExpertArena`` hold the weights, ``Pool`` has the threads,
``choose_isa`` picks the kernels, ``read_limit`` says how fast the same bytes can be read at all. Imports only
``domain``, NumPy, Numba and the standard library.
"""

from moelab.kernels.arena import ExpertArena
from moelab.kernels.bandwidth import Bandwidth, BandwidthRow
from moelab.kernels.counts import Counts
from moelab.kernels.isa import IsaChoice, IsaStatus, choose_isa, isa_table
from moelab.kernels.job import ACTIVATIONS_OF_FORMAT, Activation, WeightFormat
from moelab.kernels.layout import ExpertLayout, bf16_to_float32, float32_to_bf16
from moelab.kernels.linear import PackedLinear
from moelab.kernels.node_arenas import NodeArenas, round_robin
from moelab.kernels.node_placement import NodePlacement
from moelab.kernels.pool import Pool
from moelab.kernels.read_limit import ReadLimit, peak_gflops, read_limit, read_nodes, read_once
from moelab.kernels.routed import NO_EXPERT, RoutedExperts

__all__ = [
    "ACTIVATIONS_OF_FORMAT",
    "NO_EXPERT",
    "Activation",
    "Bandwidth",
    "BandwidthRow",
    "Counts",
    "ExpertArena",
    "ExpertLayout",
    "IsaChoice",
    "IsaStatus",
    "NodeArenas",
    "NodePlacement",
    "PackedLinear",
    "Pool",
    "ReadLimit",
    "RoutedExperts",
    "WeightFormat",
    "bf16_to_float32",
    "choose_isa",
    "float32_to_bf16",
    "isa_table",
    "peak_gflops",
    "read_limit",
    "read_nodes",
    "read_once",
    "round_robin",
]
