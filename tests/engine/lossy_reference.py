"""Naive lossy modes in torch: transformers' model, one token at a time, with Python in place of its mixture of experts.

Written from the definitions alone (`moelab.domain.lossy`): lists and loops, nothing of the engine's.
"""

import torch
import torch.nn.functional as F


class NaiveLossy:
    """Replaces the `mlp` of every MoE layer of a transformers model; `read` counts experts that were not resident.

    Residents of a layer: a list of at most `slots`, the latest last (LRU, empty at first); `fixed`: sets that stay.
    """

    def __init__(self, model, *, bias=0.0, protected=1, deferred=0, slots=0, fixed=None):
        self.config, self.bias, self.protected, self.deferred = model.config, bias, protected, deferred
        self.slots, self.fixed = slots, fixed
        self.layers = [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self.residents = [[] for _ in self.layers]
        self.ranges = [[] for _ in self.layers]
        self.late = torch.zeros(model.config.hidden_size)
        self.read = 0
        self.routed = []
        for number, mlp in enumerate(self.layers):
            mlp.forward = lambda hidden, number=number: self.layer(number, hidden)

    def layer(self, number, hidden):
        mlp, x = self.layers[number], hidden.reshape(-1)
        scores = F.linear(x, mlp.gate.weight).sigmoid()
        ids = self.choose(number, (scores + mlp.gate.e_score_correction_bias).tolist())
        weights = scores[ids]
        if self.config.norm_topk_prob:
            weights = weights / (weights.sum() + 1e-20)
        weights = weights * self.config.routed_scaling_factor
        self.routed.append(ids)
        self.use(number, ids)
        order = sorted(range(len(ids)), key=lambda rank: (-float(weights[rank]), rank))
        is_last = number == len(self.layers) - 1
        kept = order if is_last else order[: len(ids) - self.deferred]
        out, later = mlp.shared_experts(x) + self.late, torch.zeros_like(x)
        for rank, expert in enumerate(ids):
            gate, up = F.linear(x, mlp.experts.gate_up_proj[expert]).chunk(2)
            product = weights[rank] * F.linear(F.silu(gate) * up, mlp.experts.down_proj[expert])
            if rank in kept:
                out = out + product
            else:
                later = later + product
        self.late = later
        return out.view_as(hidden)

    def choose(self, number, choice):
        config, num_experts = self.config, len(choice)
        size = num_experts // config.n_group
        groups = [choice[g * size : (g + 1) * size] for g in range(config.n_group)]
        best = sorted(range(len(groups)), key=lambda g: -sum(sorted(groups[g])[-2:]))[: config.topk_group]
        allowed = [e for e in range(num_experts) if e // size in best]
        own = sorted(allowed, key=lambda e: -choice[e])[: config.num_experts_per_tok]
        self.ranges[number].append(max(choice[e] for e in allowed) - min(choice[e] for e in allowed))
        mean_range = sum(self.ranges[number]) / len(self.ranges[number])
        held = self.held(number)
        value = {e: choice[e] + self.bias * mean_range * (e in held) for e in allowed}
        kept = own[: self.protected]
        others = sorted((e for e in allowed if e not in kept), key=lambda e: -value[e])
        return kept + others[: len(own) - len(kept)]

    def held(self, number):
        return self.fixed[number] if self.fixed is not None else self.residents[number]

    def use(self, number, ids):
        self.read += sum(expert not in self.held(number) for expert in ids)
        if self.fixed is None:
            stay = [expert for expert in self.residents[number] if expert not in ids]
            self.residents[number] = (stay + ids)[-self.slots :] if self.slots else []


def logits_of_tokens(model, token_ids):
    """[T, vocab], one token after the other with transformers' own cache."""
    cache, rows = None, []
    with torch.no_grad():
        for token in token_ids:
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1])
    return torch.stack(rows)
