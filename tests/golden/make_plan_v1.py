"""Made plan_v1.json once; kept so that its content can be read. Never run again: version 1 loads for ever."""

from pathlib import Path

from moelab.domain.plan import FastTier, Placements, Plan, PlanModel, PolicyChoice, TierFormat

RAM = TierFormat(weight_format="int4_g32", expert_bytes=(24_772_608,) * 2)
PLAN = Plan(
    model=PlanModel(
        name="golden", model_type="deepseek_v3", num_layers=2, num_experts=3, top_k=2, moe_intermediate_size=96
    ),
    tiers=("node0", "node1", "fast0"),
    piece_unit=32,
    placements=Placements(
        layer=(0, 0, 0, 0, 1, 1, 1, 1, 0, 1),
        expert=(0, 1, 2, 0, 0, 1, 1, 2, 0, 2),
        start=(0, 0, 0, 0, 0, 0, 1, 0, 0, 0),
        stop=(3, 3, 3, 3, 3, 1, 3, 3, 3, 3),
        tier=(0, 1, 0, 1, 1, 0, 1, 0, 2, 2),
    ),
    fast_tiers=(FastTier(tier="fast0", slots_per_layer=(1, 1)),),
    format_of_tier={
        "node0": RAM, "node1": RAM, "fast0": TierFormat(weight_format="bf16", expert_bytes=(88_080_384,) * 2),
    },
    pinned=((0, 0, "fast0"),),
    policy=PolicyChoice(name="lru", parameters={"second_touch": 1}, seed=7),
    upload_budget=2,
    planner={"name": "by hand"},
    fingerprints={"trace": "0123456789abcdef"},
    prediction={"predicted_ms_per_token": 1.5},
)  # fmt: skip

if __name__ == "__main__":
    PLAN.save(Path(__file__).with_name("plan_v1.json"))
