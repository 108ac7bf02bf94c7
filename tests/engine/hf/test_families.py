"""Each family's router, recorded inside `generate`, against float64 NumPy and against what its experts were given."""

import numpy as np
import pytest
import torch

import moelab
from moelab.domain.trace import NO_EXPERT
from moelab.engine.hf.routers import find_routers
from tests.engine.hf.hf_families import FAMILIES, reference

SURE = 1e-5  # relative distance of the K-th score from the next; below it the choice may differ


class Witness:
    """What went into each router and each block of experts, seen by hooks that are not moelab's."""

    def __init__(self, model, family):
        self.hidden, self.executed, self.logits, handles = [], [], [], []
        biases = [
            tensor.detach().numpy().ravel()
            for name, tensor in model.state_dict(keep_vars=True).items()
            if "correction_bias" in name or name.endswith("expert_bias")
        ]
        self.blocks = [m for m in model.modules() if hasattr(m, "experts") and hasattr(m, family.router)]
        self.biases = biases if family.biased else [None] * len(self.blocks)
        for block in self.blocks:
            router = getattr(block, family.router)
            handles.append(router.register_forward_pre_hook(lambda m, args: self.hidden.append((m, args[0].detach()))))
            handles.append(block.experts.register_forward_pre_hook(self.see, with_kwargs=True))
        self.handles = handles

    def see(self, module, args, kwargs):
        given = [*args, *kwargs.values()]
        ids = next((each for each in given if each.dtype == torch.int64), None)
        if ids is not None:
            self.executed.append(ids.numpy())

    def close(self):
        for handle in self.handles:
            handle.remove()

    def passes(self):
        """Lists [pass][layer] of logits float64 [B * S, E]."""
        logits = []
        for router, hidden in self.hidden:
            weight = next(p for p in router.parameters() if p.ndim == 2)
            linear = dict(router.named_parameters()).get("bias")
            out = hidden.reshape(-1, hidden.shape[-1]).double() @ weight.double().T
            logits.append((out if linear is None else out + linear.double()).detach().numpy())
        return [logits[i : i + len(self.blocks)] for i in range(0, len(logits), len(self.blocks))]


def padded_prompts(seed, lengths, pad=2):
    draw = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), pad)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = draw.integers(3, 97, length), 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


@pytest.mark.parametrize("name", FAMILIES)
def test_records_what_the_family_routes(name):
    family = FAMILIES[name]
    model = family.build(seed=len(name))
    assert len(find_routers(model)) == len(family.layers)
    ids, mask = padded_prompts(len(name), (9, 5))
    witness = Witness(model, family)
    with moelab.record(model) as trace:
        model.generate(ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    witness.close()

    header = trace.header
    assert (header.model_type, header.model_layer_of_layer) == (name, family.layers)
    assert (header.top_k, header.gate_weight_kind, header.slot_order) == (family.top_k, family.kind, "rank")
    assert header.num_experts == family.num_experts
    experts = witness.blocks[0].experts
    whole = sum(p[: family.num_experts].numel() if p.shape[0] == 16 else p.numel() for p in experts.parameters())
    assert header.expert_bytes == (4 * whole // family.num_experts,) * len(family.layers)

    passes = witness.passes()
    assert trace.num_tokens == 14 + 2 * 5
    assert len(passes) == 6
    row, unsure = 0, 0
    for number, layers in enumerate(passes):
        kept = mask.numpy().ravel().astype(bool) if number == 0 else np.ones(2, bool)
        rows = slice(row, row + kept.sum())
        for layer, logits in enumerate(layers):
            expected, weights, margin = reference(family, logits[kept], witness.biases[layer])
            identity = expected >= family.num_experts  # LongCat: an expert without weights, no slot of the trace
            expected = np.where(identity, NO_EXPERT, expected)
            sure = margin > SURE
            unsure += (~sure).sum()
            np.testing.assert_array_equal(trace.experts[rows, layer][sure], expected[sure])
            weights = np.where(identity, 0, weights).astype(np.float16)
            np.testing.assert_allclose(trace.gate_weights[rows, layer][sure], weights[sure], rtol=2e-3, atol=1e-6)
            if witness.executed:
                executed = witness.executed[number * len(layers) + layer][kept]
                executed = np.where(executed < family.num_experts, executed, NO_EXPERT)
                assert (np.sort(executed) == np.sort(trace.experts[rows, layer])).all()
        row = rows.stop
    assert row == trace.num_tokens
    assert unsure <= 2
    assert witness.executed or name == "llama4_text", "its experts see no ids"


@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe", "mixtral", "gpt_oss", "deepseek_v3", "minimax_m2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_kind_of_weights_is_found_in_bfloat16(name, seed):
    model = FAMILIES[name].build(seed).bfloat16()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad(), moelab.record(model) as trace:
        model(torch.randint(3, 97, (1, 24), generator=draw))
    assert trace.header.gate_weight_kind == FAMILIES[name].kind
    assert trace.header.quantization == "bfloat16"
