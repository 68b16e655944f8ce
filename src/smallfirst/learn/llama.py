"""Llama's decoder with LoRA, its backward pass written out: what `train` runs instead of PEFT's modules.

PEFT computes the same, but the passes over memory between its products take two thirds of the time on a CPU. Here the
projections that read the same input are one product, scales are folded into weights, masks and rotations are written
in place, and only what the backward pass reads is kept. The weights are the model's, the parameters PEFT's own; both
are checked against PEFT's forward and backward pass in the tests. Speed: bench/train.py.

N is the number of tokens of a batch, D the model's width; K heads of keys and values of size d serve G heads of queries
each.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from smallfirst.learn.packing import Batch

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

    def logits(self, batch: Batch) -> Tensor:
        """Next-token logits (W, vocabulary) at the places of the batch that have a target."""
        hidden = self._decoder.embed_tokens(batch.ids).detach()
        cosine, sine = (
            t[0, :, None, None, : self._size // 2] for t in self._decoder.rotary_emb(hidden, batch.positions[None])
        )
        masks = [
            torch.zeros(block.visible.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(
                ~block.visible, _HIDDEN
            )
            for block in batch.blocks
        ]
        places = [(block.first, block.begin, block.end) for block in batch.blocks]
        shape = (self._shared, self._heads // self._shared, self._size)
        x = hidden
        for attention, output, gates, down in self._layers:
            qkv = _project(_Norm.apply(x, self._epsilon), attention)
            x = _project(_Attention.apply(qkv, cosine, sine, masks, places, shape), output, x)
            x = _project(_Gate.apply(_project(_Norm.apply(x, self._epsilon), gates)), down, x)
        x = _Norm.apply(x[batch.wanted], self._epsilon) * self._decoder.norm.weight
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
    """Rotary embedding and masked attention of stacked (q, k, v), N rows, block by block; q comes scaled by 1/sqrt(d).

    Heads stand before tokens, and the G queries of a token that share keys side by side, so that a block's queries of
    one key head are one matrix.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cosine: Tensor,
        sine: Tensor,
        masks: list[Tensor],
        places: list[tuple[int, int, int]],
        shape: tuple[int, int, int],
    ) -> Tensor:
        shared, grouped, size = shape
        tokens = len(qkv)
        heads = _heads(qkv, shape)
        q, k = (qkv.new_empty(shared, tokens, n, size) for n in (grouped, 1))
        _rotate(heads[0], cosine, sine, q.transpose(0, 1))
        _rotate(heads[1], cosine, sine, k.transpose(0, 1))
        k, v = k.squeeze(2), heads[2].squeeze(2).transpose(0, 1).contiguous()
        y = torch.empty_like(q)
        kept = []
        for (first, begin, end), mask in zip(places, masks, strict=True):
            part = q[:, begin:end].reshape(shared, -1, size)
            scores = torch.bmm(part, k[:, first:end].transpose(1, 2)).view(shared, end - begin, grouped, -1)
            p = torch.softmax(scores.add_(mask[:, None]), -1).view(shared, part.shape[1], -1)
            y[:, begin:end] = torch.bmm(p, v[:, first:end]).view(shared, -1, grouped, size)
            kept.append(p)
        ctx.save_for_backward(q, k, v, cosine, sine, *kept)
        ctx.places, ctx.shape = places, shape
        return y.transpose(0, 1).reshape(tokens, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cosine, sine, *kept = ctx.saved_tensors
        shared, grouped, size = ctx.shape
        tokens = k.shape[1]
        dy = grads[0].view(tokens, shared, grouped, size).transpose(0, 1).contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (first, begin, end), p in zip(ctx.places, kept, strict=True):
            part, dpart = (t[:, begin:end].reshape(shared, -1, size) for t in (q, dy))
            dscores = torch._softmax_backward_data(torch.bmm(dpart, v[:, first:end].transpose(1, 2)), p, -1, p.dtype)
            dq[:, begin:end] = torch.bmm(dscores, k[:, first:end]).view(shared, -1, grouped, size)
            dk[:, first:end] += torch.bmm(dscores.transpose(1, 2), part)
            dv[:, first:end] += torch.bmm(p.transpose(1, 2), dpart)
        made = dy.new_empty(tokens, (grouped + 2) * shared * size)
        heads = _heads(made, ctx.shape)
        _rotate(dq.transpose(0, 1), cosine, -sine, heads[0])
        _rotate(dk.transpose(0, 1)[:, :, None], cosine, -sine, heads[1])
        heads[2].copy_(dv.transpose(0, 1)[:, :, None])
        return made, None, None, None, None, None


def _heads(stacked: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of stacked (q, k, v), as views: (N, K, G, d) and two (N, K, 1, d)."""
    shared, grouped, size = shape
    parts = stacked.view(len(stacked), -1, size).split((shared * grouped, shared, shared), dim=1)
    q, k, v = (part.view(len(stacked), shared, -1, size) for part in parts)
    return q, k, v


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor, out: Tensor) -> None:
    """Heads (N, K, G, d) turned by their tokens' angles, given as (N, 1, 1, d/2), into `out`; the inverse for -sine."""
    (first, second), (to_first, to_second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cosine, out=to_first).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=to_second).addcmul_(first, sine)
