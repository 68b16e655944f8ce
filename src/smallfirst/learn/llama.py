"""Llama's decoder with LoRA, its backward pass written out: what `train` runs instead of PEFT's modules.

PEFT computes the same, but the passes over memory between its products take two thirds of the time on a CPU. Here the
projections that read the same input are one product, scales are folded into weights, masks and rotations are written
in place, and only what the backward pass reads is kept. The weights are the model's, the parameters PEFT's own; both
are checked against PEFT's forward and backward pass in the tests. Speed: bench/train.py.

N is the number of tokens of a batch, B its rows, T their length, D the model's width, H heads of size d that share K
heads of keys and values.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_ADAPTER = "default"
_HIDDEN = -1e9  # added to the score of a position that may not be seen


@dataclass(frozen=True, slots=True)
class _Group:
    """Projections of one input: the frozen weights stacked, and the LoRA pairs of each with what they are scaled by."""

    weight: Tensor
    pairs: tuple[tuple[nn.Parameter, nn.Parameter, float], ...]
    input_scale: Tensor | None  # of the norm before, folded into the weights

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (sum of ranks, in) and block-diagonal B (out, sum of ranks) in the weights' type, scales folded in."""
        a = torch.cat([a for a, _, _ in self.pairs])
        b = torch.block_diag(*(b * scale for _, b, scale in self.pairs))
        if self.input_scale is not None:
            a = a * self.input_scale
        return a.to(self.weight.dtype), b.to(self.weight.dtype)


def _group(modules: list[Any], norm: Any = None, scales: tuple[float, ...] = ()) -> _Group:
    scales = scales or (1.0,) * len(modules)
    with torch.no_grad():
        weight = torch.cat([m.base_layer.weight * scale for m, scale in zip(modules, scales, strict=True)])
        if norm is not None:
            weight = weight * norm.weight
    pairs = tuple(
        (m.lora_A[_ADAPTER].weight, m.lora_B[_ADAPTER].weight, m.scaling[_ADAPTER] * scale)
        for m, scale in zip(modules, scales, strict=True)
    )
    return _Group(weight.detach().contiguous(), pairs, None if norm is None else norm.weight.detach())


def supports(model: Any) -> bool:
    """Whether `LoraLlama` computes what this PEFT model computes: Llama without biases, plain LoRA on dense weights."""
    causal = model.get_base_model()
    if causal.config.model_type != "llama" or causal.config.hidden_act != "silu":
        return False
    modules = [m for layer in causal.model.layers for m in (*layer.self_attn.children(), *layer.mlp.children())]
    projections = [m for m in modules if hasattr(m, "base_layer")]
    return len(projections) == 7 * len(causal.model.layers) and all(
        type(m.base_layer) is nn.Linear and m.base_layer.bias is None and not m.lora_variant for m in projections
    )


class LoraLlama:
    """The decoder of a PEFT-wrapped LlamaForCausalLM whose seven projections all carry plain LoRA."""

    def __init__(self, model: Any) -> None:
        causal = model.get_base_model()
        config = causal.config
        self._decoder, self._head = causal.model, causal.lm_head.weight
        self._heads, self._shared, self._size = (
            config.num_attention_heads,
            config.num_key_value_heads,
            causal.model.layers[0].self_attn.head_dim,
        )
        self._epsilon = config.rms_norm_eps
        self._layers = [self._layer(layer) for layer in causal.model.layers]

    def _layer(self, layer: Any) -> tuple[_Group, _Group, _Group, _Group]:
        attention, mlp = layer.self_attn, layer.mlp
        scale = self._size**-0.5
        return (
            _group([attention.q_proj, attention.k_proj, attention.v_proj], layer.input_layernorm, (scale, 1.0, 1.0)),
            _group([attention.o_proj]),
            _group([mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm),
            _group([mlp.down_proj]),
        )

    def logits(self, ids: Tensor, positions: Tensor, visible: Tensor, wanted: Tensor) -> Tensor:
        """Next-token logits (number wanted, vocabulary) at the places where `wanted` (B, T) is true.

        `ids` and `positions` (B, T); `visible` (B, T, T) is true where a query (row) may see a key (column).
        """
        hidden = self._decoder.embed_tokens(ids).detach()
        cosine, sine = (t[..., : self._size // 2] for t in self._decoder.rotary_emb(hidden, positions))
        mask = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(~visible, _HIDDEN)
        shape = (*ids.shape, self._heads, self._shared, self._size)
        x = hidden.view(-1, hidden.shape[-1])
        for attention, output, gates, down in self._layers:
            qkv = _project(_Norm.apply(x, self._epsilon), attention)
            x = _project(_Attention.apply(qkv, cosine, sine, mask, shape), output, x)
            x = _project(_Gate.apply(_project(_Norm.apply(x, self._epsilon), gates)), down, x)
        x = _Norm.apply(x[wanted.view(-1)], self._epsilon) * self._decoder.norm.weight
        return functional.linear(x, self._head)


def _project(x: Tensor, group: _Group, residual: Tensor | None = None) -> Tensor:
    made: Tensor = _Project.apply(x, group.weight, *group.factors(), residual)
    return made


class _Project(torch.autograd.Function):
    """y = x W' + (x A') B' (+ residual); W is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, residual: Tensor | None) -> Tensor:
        low = x @ a.t()
        y = x @ weight.t() if residual is None else torch.addmm(residual, x, weight.t())
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.has_residual = residual is not None
        made: Tensor = y.addmm_(low, b.t())
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight, a, b, low = ctx.saved_tensors
        dlow = dy @ b
        dx = (dy @ weight).addmm_(dlow, a) if ctx.needs_input_grad[0] else None
        return dx, None, dlow.t() @ x, (low.t() @ dy).t(), dy if ctx.has_residual else None


class _Norm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + epsilon) over rows, statistics in float32. The norm's weight is applied elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        squares: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        inverse = (squares / x.shape[-1] + epsilon).rsqrt_().to(x.dtype)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dy,) = grads
        y, inverse = ctx.saved_tensors
        along = (dy * y).mean(-1, keepdim=True)
        return torch.addcmul(dy, y, along, value=-1).mul_(inverse), None


class _Gate(torch.autograd.Function):
    """silu(g) * u of the two halves (g, u) of a row."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor) -> Tensor:
        ctx.save_for_backward(halves)
        gate, up = halves.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dy,) = grads
        (halves,) = ctx.saved_tensors
        made = torch.empty_like(halves)
        (gate, up), (dgate, dup) = halves.chunk(2, -1), made.chunk(2, -1)
        torch.mul(functional.silu(gate), dy, out=dup)
        dgate.copy_(torch.ops.aten.silu_backward(dy * up, gate))
        return made


class _Attention(torch.autograd.Function):
    """Rotary embedding and masked attention of stacked (q, k, v), N rows; q comes scaled by 1/sqrt(d)."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor, shape: tuple[int, int, int, int, int]
    ) -> Tensor:
        rows, length, heads, shared, size = shape
        split = qkv.view(rows, length, heads + 2 * shared, size).transpose(1, 2)
        turned = _rotate(split[:, : heads + shared], cosine, sine)
        q = turned[:, :heads].reshape(rows * shared, -1, size)  # queries of one key head lie one after the other
        k = turned[:, heads:].reshape(rows * shared, length, size)
        v = split[:, heads + shared :].reshape(rows * shared, length, size)
        scores = torch.bmm(q, k.transpose(1, 2)).view(rows, heads, length, length).add_(mask[:, None])
        p = torch.softmax(scores, -1).view(rows * shared, -1, length)
        ctx.save_for_backward(q, k, v, p, cosine, sine)
        ctx.shape = shape
        made = torch.bmm(p, v).view(rows, heads, length, size)
        return made.transpose(1, 2).reshape(rows * length, heads * size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        rows, length, heads, shared, size = ctx.shape
        q, k, v, p, cosine, sine = ctx.saved_tensors
        dy = dy.view(rows, length, heads, size).transpose(1, 2).reshape(rows * shared, -1, size)
        dscores = torch._softmax_backward_data(torch.bmm(dy, v.transpose(1, 2)), p, -1, p.dtype)
        made = torch.empty(rows, length, heads + 2 * shared, size, dtype=dy.dtype, device=dy.device)
        dq, dk, dv = made.transpose(1, 2).split((heads, shared, shared), dim=1)
        _rotate(torch.bmm(dscores, k).view(rows, heads, length, size), cosine, -sine, dq)
        _rotate(torch.bmm(dscores.transpose(1, 2), q).view(rows, shared, length, size), cosine, -sine, dk)
        dv.copy_(torch.bmm(p.transpose(1, 2), dy).view(rows, shared, length, size))
        return made.view(rows * length, -1), None, None, None, None


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor, out: Tensor | None = None) -> Tensor:
    """Heads (B, heads, T, d) turned by their positions' angles, given as (B, T, d/2); the inverse for -sine."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    cosine, sine = cosine[:, None], sine[:, None]
    torch.mul(first, cosine, out=to_first).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=to_second).addcmul_(first, sine)
    return out
