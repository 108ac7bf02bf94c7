"""Optimizer of nano over flat shared memory: Muon for the small matrices, AdamW for the rest.

Knows: one flat float32 buffer for parameters and one gradient buffer per worker, how the work of a
step is split between the workers, and the update rules. Does not know: the loss, data or schedules.

Muon: Jordan et al. 2024 (Newton-Schulz orthogonalised momentum), with the 0.2 * sqrt(max(shape))
scaling of Moonlight (Liu et al. 2025, section 2.2). Routed experts stay on AdamW: orthogonalising
864 matrices would cost about 40 % of a step here.
"""

import torch

GROUPS = ("expert_and_head", "embed", "router", "norm", "muon")  # order in the flat buffer


def group_of(name: str) -> str:
    if ".experts." in name or name.startswith("lm_head"):
        return "expert_and_head"
    if "embed_tokens" in name:
        return "embed"
    if name.endswith("mlp.gate.weight"):
        return "router"
    return "norm" if "norm" in name else "muon"


class FlatLayout:
    """Where each parameter lives in the flat buffer; parameters are sorted by group."""

    def __init__(self, model: torch.nn.Module):
        named = sorted(model.named_parameters(), key=lambda item: GROUPS.index(group_of(item[0])))
        self.slices, self.group_ranges, offset = {}, {}, 0
        for name, p in named:
            self.slices[name] = (offset, p.shape)
            begin = self.group_ranges.get(group_of(name), (offset, 0))[0]
            offset += p.numel()
            self.group_ranges[group_of(name)] = (begin, offset)
        self.num_parameters = offset

    def view(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        offset, shape = self.slices[name]
        return flat[offset : offset + shape.numel()].view(shape)

    def bind(self, model: torch.nn.Module, flat: torch.Tensor, grad: torch.Tensor | None) -> None:
        for name, p in model.named_parameters():
            p.data = self.view(flat, name)
            p.grad = None if grad is None else self.view(grad, name)

    def muon_names(self) -> list[str]:
        return [name for name in self.slices if group_of(name) == "muon"]


def newton_schulz(g: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrix, roughly (quintic iteration, coefficients of Jordan et al.)."""
    x = g.t() if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(num_steps):
        a = x @ x.t()
        x = 3.4445 * x + torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315) @ x
    return x.t() if g.shape[0] > g.shape[1] else x


class Optimizer:
    """One worker's share of the update. State tensors are shared, so any worker can save them."""

    def __init__(
        self,
        layout: FlatLayout,
        flat: torch.Tensor,
        state: dict[str, torch.Tensor],
        rank: int,
        num_workers: int,
        weight_decay: float = 0.1,
    ):
        self.layout, self.flat, self.state = layout, flat, state
        self.rank, self.num_workers, self.weight_decay = rank, num_workers, weight_decay

    @staticmethod
    def new_state(layout: FlatLayout) -> dict[str, torch.Tensor]:
        adam_end = layout.group_ranges["muon"][0]
        return {
            "exp_avg": torch.zeros(adam_end),
            "exp_avg_sq": torch.zeros(adam_end),
            "momentum": torch.zeros(layout.num_parameters - adam_end),
        }

    def share(self, begin: int, end: int) -> slice:
        step = -(-(end - begin) // self.num_workers)
        return slice(begin + self.rank * step, min(begin + (self.rank + 1) * step, end))

    def reduce(self, grads: list[torch.Tensor]) -> float:
        """Sum this worker's share of all gradients into grads[0]; returns the share's sum of squares of the MEAN gradient."""
        part = self.share(0, self.layout.num_parameters)
        for other in grads[1:]:
            grads[0][part].add_(other[part])
        return float(grads[0][part].norm()) ** 2 / self.num_workers**2

    @torch.no_grad()
    def step(
        self, grad_sum: torch.Tensor, grad_norm: float, clip: float, step: int, learning_rate: dict[str, float]
    ) -> None:
        """`grad_sum` is the complete sum over workers; `step` counts from 1."""
        divisor = self.num_workers * max(1.0, grad_norm / clip)
        for group in GROUPS[:-1]:
            part = self.share(*self.layout.group_ranges[group])
            torch._fused_adamw_(
                [self.flat[part]],
                [grad_sum[part]],
                [self.state["exp_avg"][part]],
                [self.state["exp_avg_sq"][part]],
                [],
                [torch.tensor(float(step))],
                lr=learning_rate[group],
                beta1=0.9,
                beta2=0.95,
                weight_decay=self.weight_decay if group == "expert_and_head" else 0.0,
                eps=1e-10,
                amsgrad=False,
                maximize=False,
                grad_scale=torch.tensor(divisor),
            )
        muon_begin = self.layout.group_ranges["muon"][0]
        for name in self.layout.muon_names()[self.rank :: self.num_workers]:
            offset, shape = self.layout.slices[name]
            p, g = self.layout.view(self.flat, name), self.layout.view(grad_sum, name)
            momentum = self.state["momentum"][offset - muon_begin : offset - muon_begin + shape.numel()].view(shape)
            momentum.mul_(0.95).add_(g, alpha=1.0 / divisor)
            update = newton_schulz(g / divisor + 0.95 * momentum)
            rate = learning_rate["muon"]
            p.mul_(1.0 - rate * self.weight_decay).add_(update, alpha=-rate * 0.2 * max(shape) ** 0.5)
