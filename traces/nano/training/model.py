"""Network of nano: the deepseek_v3 architecture (MLA, sigmoid router without auxiliary loss) for training on a CPU.

Knows: shapes, initialisation, forward, and hand-written backward passes of the two expensive parts
(routed experts, output head). Parameter names and shapes are those of transformers'
DeepseekV3ForCausalLM. Does not know: data, optimizers, processes, disk formats.

The two hand-written functions WRITE their weight gradients into `weight.grad` instead of adding to
them (one micro-batch per step; no allocation of 19 MB per layer). Everything else accumulates as usual.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class NanoConfig:
    """The fields of the HF config that the network reads, under their HF names."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 7
    first_k_dense_replace: int = 1
    intermediate_size: int = 768
    n_routed_experts: int = 48
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 128
    n_shared_experts: int = 1
    num_attention_heads: int = 8
    q_lora_rank: int = 128
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    routed_scaling_factor: float = 2.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 50000.0
    max_position_embeddings: int = 2048
    compute_dtype: str = field(default="float32")


def resolve_dtype(name: str) -> str:
    """`auto` is bfloat16 only where the CPU multiplies it in hardware; emulated bf16 is slower than float32."""
    if name != "auto":
        return name
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        flags = next((line for line in file if line.startswith("flags")), "")
    return "bfloat16" if "avx512_bf16" in flags else "float32"


class RoutedExperts(torch.autograd.Function):
    """y[t] = sum_k gate_weight[t, k] * down_proj[e](silu(gate_proj[e](x[t])) * up_proj[e](x[t])), e = expert[t, k]."""

    @staticmethod
    def forward(ctx, x, expert, gate_weight, gate_up, down, dtype):
        num_tokens, top_k = expert.shape
        num_experts, inter = gate_up.shape[0], down.shape[2]
        order = expert.flatten().argsort(stable=True)
        bounds = [0, *torch.bincount(expert.flatten(), minlength=num_experts).cumsum(0).tolist()]
        rows = order // top_k
        xs = x.index_select(0, rows).to(dtype)
        gate_up_c, down_c = gate_up.to(dtype), down.to(dtype)
        gu = xs.new_empty(xs.shape[0], 2 * inter)
        for e in range(num_experts):
            a, b = bounds[e], bounds[e + 1]
            if b > a:
                torch.mm(xs[a:b], gate_up_c[e].t(), out=gu[a:b])
        w = gate_weight.flatten().index_select(0, order).unsqueeze(1).to(dtype)
        h = F.silu(gu[:, :inter]).mul_(gu[:, inter:])
        hw = h * w
        y = xs.new_empty(xs.shape)
        for e in range(num_experts):
            a, b = bounds[e], bounds[e + 1]
            if b > a:
                torch.mm(hw[a:b], down_c[e].t(), out=y[a:b])
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        ctx.save_for_backward(xs, gu, h, w, rows, order, inverse)
        ctx.weights, ctx.compute = (gate_up, down), (gate_up_c, down_c)
        ctx.bounds, ctx.top_k = bounds, top_k
        return y.index_select(0, inverse).view(num_tokens, top_k, -1).sum(1).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        xs, gu, h, w, rows, order, inverse = ctx.saved_tensors
        (gate_up, down), (gate_up_c, down_c) = ctx.weights, ctx.compute
        bounds, num_experts, inter = ctx.bounds, gate_up.shape[0], down.shape[2]
        dys = dy.index_select(0, rows).to(xs.dtype)
        hw = h * w
        dhw = torch.empty_like(h)
        for e in range(num_experts):
            a, b = bounds[e], bounds[e + 1]
            if b > a:
                torch.mm(dys[a:b], down_c[e], out=dhw[a:b])
                write_mm(dys[a:b].t(), hw[a:b], down.grad[e])
            else:
                down.grad[e].zero_()
        dw = torch.empty(order.numel(), dtype=torch.float32)
        dw[order] = (dhw * h).sum(1, dtype=torch.float32)
        dh = dhw.mul_(w)
        gate, up = gu[:, :inter], gu[:, inter:]
        dgu = torch.empty_like(gu)
        torch.mul(dh, F.silu(gate), out=dgu[:, inter:])
        dgu[:, :inter] = torch.ops.aten.silu_backward(dh.mul_(up), gate)
        dxs = dys  # reused: no longer needed
        for e in range(num_experts):
            a, b = bounds[e], bounds[e + 1]
            if b > a:
                write_mm(dgu[a:b].t(), xs[a:b], gate_up.grad[e])
                torch.mm(dgu[a:b], gate_up_c[e], out=dxs[a:b])
            else:
                gate_up.grad[e].zero_()
        dx = dxs.index_select(0, inverse).view(-1, ctx.top_k, xs.shape[1]).sum(1).to(dy.dtype)
        return dx, None, dw.view(-1, ctx.top_k), None, None, None


def write_mm(a, b, out):
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy (nats/token) of `hidden @ weight.T`; the gradient is computed in the forward, 512 rows at a time."""

    @staticmethod
    def forward(ctx, hidden, weight, target, dtype):
        loss, num_tokens = 0.0, hidden.shape[0]
        d_hidden, weight_c = torch.empty_like(hidden), weight.to(dtype)
        weight.grad.zero_()
        for a in range(0, num_tokens, 512):
            h, t = hidden[a : a + 512].to(dtype), target[a : a + 512, None]
            logits = (h @ weight_c.t()).float()
            log_z = logits.logsumexp(1, keepdim=True)
            loss += float((log_z - logits.gather(1, t)).sum())
            p = logits.sub_(log_z).exp_()
            p.scatter_add_(1, t, torch.full(t.shape, -1.0))
            p = p.mul_(1.0 / num_tokens).to(dtype)
            d_hidden[a : a + 512] = p @ weight_c
            if dtype == weight.dtype:
                weight.grad.addmm_(p.t(), h)
            else:
                weight.grad.add_(p.t() @ h)
        ctx.save_for_backward(d_hidden)
        return hidden.new_tensor(loss / num_tokens)

    @staticmethod
    def backward(ctx, d_loss):
        return ctx.saved_tensors[0] * d_loss, None, None, None


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


def rotate(x, cos, sin):
    """Interleaved rotary embedding (rope_interleave true): pairs are (2i, 2i+1); x [B, heads, T, D]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Multi-head latent attention with plain matrix products (faster than SDPA here at 256 tokens)."""

    def __init__(self, c: NanoConfig):
        super().__init__()
        self.c, heads = c, c.num_attention_heads
        self.q_a_proj = nn.Linear(c.hidden_size, c.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, 1e-6)
        self.q_b_proj = nn.Linear(c.q_lora_rank, heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = nn.Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * c.v_head_dim, c.hidden_size, bias=False)

    def forward(self, x, cos, sin, mask):
        c, (batch, length, _) = self.c, x.shape
        heads, nope, rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(batch, length, heads, nope + rope).transpose(1, 2)
        latent = self.kv_a_proj_with_mqa(x)
        kv = (
            self.kv_b_proj(self.kv_a_layernorm(latent[..., : c.kv_lora_rank]))
            .view(batch, length, heads, -1)
            .transpose(1, 2)
        )
        k_rope = rotate(latent[..., c.kv_lora_rank :].unsqueeze(1), cos, sin).to(kv.dtype)
        q = torch.cat([q[..., :nope], rotate(q[..., nope:], cos, sin).to(q.dtype)], -1).flatten(0, 1)
        k = torch.cat([kv[..., :nope], k_rope.expand(-1, heads, -1, -1)], -1).flatten(0, 1)
        scores = torch.baddbmm(mask.to(q.dtype), q, k.transpose(1, 2), alpha=(nope + rope) ** -0.5)
        out = scores.softmax(-1).to(kv.dtype) @ kv[..., nope:].flatten(0, 1)
        return self.o_proj(out.view(batch, heads, length, -1).transpose(1, 2).reshape(batch, length, -1)).float()


class MLP(nn.Module):
    def __init__(self, hidden, inter):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inter, bias=False)
        self.up_proj = nn.Linear(hidden, inter, bias=False)
        self.down_proj = nn.Linear(inter, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)).float()


class Router(nn.Module):
    def __init__(self, c: NanoConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))


class Experts(nn.Module):
    def __init__(self, c: NanoConfig):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(c.n_routed_experts, 2 * c.moe_intermediate_size, c.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size, c.moe_intermediate_size))


class MoE(nn.Module):
    def __init__(self, c: NanoConfig):
        super().__init__()
        self.c, self.gate, self.experts = c, Router(c), Experts(c)
        self.shared_experts = MLP(c.hidden_size, c.moe_intermediate_size * c.n_shared_experts)
        self.routed_enabled, self.last_expert = True, None

    def route(self, x):
        """x [T, H] -> expert int64 [T, K] and gate weight float32 [T, K]; always in float32."""
        with torch.autocast("cpu", enabled=False):
            scores = F.linear(x.float(), self.gate.weight).sigmoid()
        expert = (scores.detach() + self.gate.e_score_correction_bias).topk(
            self.c.num_experts_per_tok, -1, sorted=False
        )[1]
        weight = scores.gather(1, expert)
        return expert, weight / (weight.sum(-1, keepdim=True) + 1e-20) * self.c.routed_scaling_factor

    def forward(self, x):
        flat = x.flatten(0, 1)
        expert, weight = self.route(flat)
        self.last_expert = expert
        shared = self.shared_experts(x)
        if not self.routed_enabled:
            return shared
        dtype = getattr(torch, self.c.compute_dtype)
        routed = RoutedExperts.apply(flat, expert, weight, self.experts.gate_up_proj, self.experts.down_proj, dtype)
        return shared + routed.view_as(x)


class Layer(nn.Module):
    def __init__(self, c: NanoConfig, index: int):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if index < c.first_k_dense_replace else MoE(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    def __init__(self, c: NanoConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Nano(nn.Module):
    def __init__(self, c: NanoConfig):
        super().__init__()
        self.c, self.model = c, Backbone(c)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    @property
    def moe_layers(self) -> list[MoE]:
        return [layer.mlp for layer in self.model.layers if isinstance(layer.mlp, MoE)]

    @torch.no_grad()
    def init_weights(self, seed: int, embed_std: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() == 1:
                p.fill_(1.0)
                continue
            std = 0.6 / p.shape[-1] ** 0.5
            if "embed_tokens" in name:
                std = embed_std
            elif name.endswith("mlp.gate.weight"):
                std = 0.006
            elif "o_proj" in name or "down_proj" in name:
                std /= (2 * self.c.num_hidden_layers) ** 0.5
            p.normal_(0.0, std, generator=generator)

    def hidden(self, tokens):
        """tokens int64 [B, T] -> final hidden state float32 [B, T, H]."""
        c, length = self.c, tokens.shape[1]
        half = c.qk_rope_head_dim // 2
        angle = torch.arange(length)[:, None] * c.rope_theta ** -(torch.arange(half) / half)
        cos, sin = angle.cos(), angle.sin()
        mask = torch.full((length, length), -1e30).triu_(1)
        x = self.model.embed_tokens(tokens)
        dtype = getattr(torch, c.compute_dtype)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            for layer in self.model.layers:
                x = layer(x, cos, sin, mask)
        return self.model.norm(x)

    def loss(self, tokens):
        """Mean next-token loss in nats; tokens int64 [B, T + 1]."""
        h = self.hidden(tokens[:, :-1]).flatten(0, 1)
        return HeadLoss.apply(h, self.lm_head.weight, tokens[:, 1:].flatten(), getattr(torch, self.c.compute_dtype))

    def logits(self, tokens):
        return self.lm_head(self.hidden(tokens))
