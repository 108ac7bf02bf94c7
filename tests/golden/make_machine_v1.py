"""Made machine_v1.json once, before nodes had times of their own. Never run again: calibrations load for ever."""

from pathlib import Path

from moelab.domain.expert_times import BusyNodes, ExpertTimes, Uploads
from moelab.domain.machine import Machine, NumaNode

MACHINE = Machine(
    name="golden",
    source="calibration",
    date="2026-11-26",
    cpu="a processor",
    nodes=(
        NumaNode(name="node0", cores=(0, 1), memory_bytes=2**35, read_gb_per_s={1: 11.0, 2: 20.0},
                 remote_read_gb_per_s={"node1": 9.0}),
        NumaNode(name="node1", cores=(2,), memory_bytes=2**34, read_gb_per_s={1: 10.0},
                 remote_read_gb_per_s={"node0": 8.0}),
    ),
    last_level_cache_bytes=2**25,
    kernel_efficiency={"generic/int4_g32/int8": 0.75},
    layer_overhead_s=1e-5,
    barrier_s=1e-6,
    contention={"read_share_of_2_nodes": 0.875},
    residuals={"reads_spread": 0.125},
    expert_times=(
        ExpertTimes(
            kernel="generic/int4_g32/int8", hidden_size=64, intermediate_size=256, expert_bytes=10_000_000,
            workers_of_node=2, layer_s=2e-6, token_s=1e-6, expert_s={1: 6e-4, 2: 8e-4}, piece_factor={2: 1.25},
            read_gb_per_s=20.0, sharpness=4.0, busy={2: BusyNodes(read_gb_per_s=17.5, kernel_share=0.9)},
            uploads=Uploads(by="a thread", alone_gb_per_s=8.0, beside_gb_per_s=6.0, read_gb_per_s=15.0,
                            kernel_share=0.9, upload_share=0.8),
            residual=0.01, num_calls=100,
        ),
    ),
)  # fmt: skip

if __name__ == "__main__":
    MACHINE.save(Path(__file__).with_name("machine_v1.json"))
