"""Times of an expert shape as a calibration might have found them, for tests that predict by hand."""

from moelab.domain.expert_times import BusyNodes, ExpertTimes, Uploads
from moelab.kernels import ExpertLayout


def times(**changes):
    values = {
        "kernel": "generic/int4_g32/int8", "hidden_size": 64, "intermediate_size": 64,
        "expert_bytes": ExpertLayout(64, 64, "int4_g32").expert_bytes, "workers_of_node": 1, "layer_s": 1e-5,
        "token_s": 1e-6, "expert_s": {1: 1e-5, 2: 2e-5}, "piece_factor": {2: 1.1}, "read_gb_per_s": 10.0,
        "busy": {2: BusyNodes(read_gb_per_s=5.0, kernel_share=1.0)}, "residual": 0.0, "num_calls": 1,
        "uploads": Uploads(by="a test", alone_gb_per_s=4.0, beside_gb_per_s=2.0, read_gb_per_s=5.0, kernel_share=1.0,
                           upload_share=1.0),
    }  # fmt: skip
    return ExpertTimes(**(values | changes))
