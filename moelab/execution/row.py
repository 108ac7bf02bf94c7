"""One row of a replay's result, from its prediction and its measurement. Floor 4."""

from __future__ import annotations

from moelab.execution.execute import Measurement
from moelab.execution.folding import Folding
from moelab.execution.paired_bandwidth import imbalance, paired_bandwidth
from moelab.execution.prediction import Prediction
from moelab.execution.result import ReplayRow
from moelab.execution.run import Run
from moelab.execution.weights import ReplayWeights


def assemble(
    name: str, run: Run, weights: ReplayWeights, folding: Folding, shape_name: str, layers: int, placement: str,
    cache_resident: bool, prediction: Prediction, measured: Measurement, worst: float, tolerance: float, peak: int,
) -> ReplayRow:  # fmt: skip
    layout, layer = weights.layout, weights.layers[0]
    tier = run.simulated if run.plan.fast_tiers else None
    calibrated = prediction.calibrated
    rescaled = prediction.ms_per_token(measured.read_gb_per_s)
    executed = float(measured.step_bytes.sum()) / layout.expert_bytes / measured.layer_steps
    left = None if tier is None or tier.reads_per_layer_step is None else tier.reads_per_layer_step / executed
    percent = None if cache_resident or name == "own" else measured.percent_of_read_limit
    title = ("own weights" if name == "own" else f"{shape_name} shape") + ": bandwidth by layer and node"
    bandwidth = paired_bandwidth(
        title, measured, virtual_nodes=run.pool.virtual, cache_resident=cache_resident, limited=percent is not None
    )
    return ReplayRow(
        name=name,
        expert_shape=shape_name,
        predicted_ms_per_token_stored=prediction.ms_per_token(),
        predicted_ms_per_token=rescaled,
        predicted_tok_per_s=1e3 / rescaled,
        predicted_ms_per_token_calibrated_stored=None if calibrated is None else calibrated.ms_per_token(),
        predicted_ms_per_token_calibrated=(
            None if calibrated is None else calibrated.ms_per_token(measured.read_gb_per_s)
        ),
        calibrated_times=None if calibrated is None else calibrated.times.name,
        measured_ms_per_token=measured.ms_per_token,
        measured_ms_per_token_range=measured.ms_per_token_quartiles,
        measured_tok_per_s=1e3 / measured.ms_per_token,
        predicted_ms_per_token_with_fast_tier=(
            None if left is None else prediction.ms_per_token(measured.read_gb_per_s, left)
        ),
        gb_per_s=measured.gb_per_s,
        gb_per_s_per_node=tuple(node.gb_per_s for node in bandwidth.totals),
        read_limit_gb_per_s_per_node=tuple(node.read_limit_gb_per_s for node in bandwidth.totals),
        percent_of_read_limit_per_node=(
            tuple(node.percent_of_read_limit or 0.0 for node in bandwidth.totals) if percent else None
        ),
        bytes_of_node=tuple(node.num_bytes for node in bandwidth.totals),
        node_imbalance=imbalance(measured),
        placement=placement,
        slowness=run.told.said,
        slowness_of=run.told.source,
        tail_us_per_layer_step=bandwidth.totals[0].tail_us_per_call,
        read_limit_gb_per_s=measured.read_gb_per_s,
        read_loop=measured.read_loop,
        percent_of_read_limit=percent[0] if percent else None,
        percent_of_read_limit_range=percent[1:] if percent else None,
        expert_bytes=layout.expert_bytes,
        executed_reads_per_layer_step=executed,
        reads_per_layer_step=tier.reads_per_layer_step if tier else None,
        hit_rate_per_routing=tier.hit_rate_per_routing if tier else None,
        hit_rate_per_request=tier.hit_rate_per_request if tier else None,
        uploads_per_layer_step=tier.uploads_per_layer_step if tier else None,
        scored_on=run.scored_on,
        isa=run.isa,
        activation=layer.activation,
        weight_format=layout.weight_format,
        num_workers=run.pool.num_workers,
        num_nodes=weights.num_nodes,
        virtual_nodes=run.pool.virtual,
        cache_resident=cache_resident,
        synthetic_weights=weights.synthetic,
        synthetic_routing=run.trace.header.synthetic,
        layers_run=folding.num_layers,
        layers_of_model=layers,
        experts_run=folding.num_experts,
        folding=folding.text,
        tokens=int(measured.step_tokens.sum()),
        layer_steps=measured.layer_steps,
        trace=run.trace_name,
        plan=run.plan_name,
        huge_pages=weights.huge_pages,
        memory_binding=weights.binding,
        peak_memory_bytes=peak,
        weights_bytes=weights.weights_bytes,
        max_relative_error=worst,
        relative_error_tolerance=tolerance,
        bandwidth=bandwidth,
    )
