"""State spaces: Mamba's selective scan (Gu and Dao, arXiv:2312.00752) and Mamba2's (Dao and Gu, arXiv:2405.21060).

``mamba_forward`` and ``mamba2_forward`` take the place of the methods that fla's layers fall back to where the
mamba-ssm package is
missing: token loops, and products that hold [T, chunk, heads, state] at once.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flame.ops.gated_linear import gated_linear_attention
from flame.ops.precision import precision
from flame.ops.scan import elementwise_scan

SEGMENT = 256
"""Tokens whose [D, N] states exist at once; the gradient computes them again, segment by segment."""


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t``, ``y_t = h_t C_t`` for each channel with its own state of size N.

    Args:
        x, dt: [B, T, D] inputs and positive step sizes.
        a: [D, N] negative decay rates.
        b, c: [B, T, N] how tokens write to and read from the states.
        state: [B, D, N] before the first token.

    Returns:
        [B, T, D] in the dtype of ``x`` and the final states [B, D, N] in float32 (float64 for float64).
    """
    dtype = precision(x)
    running = torch.zeros(x.shape[0], *a.shape, dtype=dtype, device=x.device) if state is None else state.to(dtype)
    outputs = []
    for start in range(0, x.shape[1], SEGMENT):
        part = [y[:, start : start + SEGMENT] for y in (x, dt, b, c)]
        if torch.is_grad_enabled() and x.shape[1] > SEGMENT:
            y, running = checkpoint(_segment, part, a, running, use_reentrant=False)
        else:
            y, running = _segment(part, a, running)
        outputs.append(y)
    return torch.cat(outputs, 1), running


def _segment(part: list[Tensor], a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    x, dt, b, c = part
    dt = dt.to(state.dtype)
    decay = dt.unsqueeze(-1) * a.to(state.dtype)  # [B, T, D, N]
    update = (dt * x.to(state.dtype)).unsqueeze(-1) * b.to(state.dtype).unsqueeze(2)
    h, last = elementwise_scan(update.flatten(2), decay.flatten(2), state.flatten(1))
    y = (h.view_as(update) @ c.to(state.dtype).unsqueeze(-1)).squeeze(-1)
    return y.to(x.dtype), last.view_as(state)


def selective_scan_by_token(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence that ``selective_scan`` computes, one token at a time."""
    h = x.new_zeros(x.shape[0], *a.shape) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        step = dt[:, t].unsqueeze(-1)
        h = h * (step * a).exp() + step * x[:, t].unsqueeze(-1) * b[:, t].unsqueeze(1)
        outputs.append((h * c[:, t].unsqueeze(1)).sum(-1))
    return torch.stack(outputs, 1), h


def mamba_forward(
    self: Any,
    input_states: Tensor,
    last_state: Mapping[str, Any] | None = None,
    use_cache: bool | None = False,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """``fla.layers.mamba.Mamba.slow_forward`` in chunks; a cached call may bring several tokens."""
    x, gate = self.in_proj(input_states).chunk(2, dim=-1)  # [B, T, D]
    x, conv_state = _convolve(self, _unpadded(x, attention_mask, last_state), last_state)
    x = _unpadded(x, attention_mask, last_state)
    step, b, c = self.x_proj(x).split([self.dt_rank, self.ssm_state_size, self.ssm_state_size], dim=-1)
    dt = F.softplus(self.dt_proj(step).float())
    a = -self.A_log.float().exp()
    y, state = selective_scan(x, dt, a, b, c, None if last_state is None else last_state["recurrent_state"])
    y = (y + x * self.D.to(x.dtype)) * self.act(gate)
    return self.out_proj(y), conv_state if use_cache or last_state is not None else None, state


def mamba2_forward(
    self: Any,
    input_states: Tensor,
    last_state: Mapping[str, Any] | None = None,
    use_cache: bool = False,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """``fla.layers.mamba2.Mamba2.torch_forward`` as gated linear attention with a decay per head.

    ``C`` reads as queries do, ``B`` writes as keys, ``dt x`` are the values and ``exp(dt A)`` is the decay.
    """
    width, states = self.intermediate_size, self.n_groups * self.ssm_state_size
    projected = self.in_proj(input_states)
    unused = projected.shape[-1] - 2 * width - 2 * states - self.num_heads
    _, gate, x, dt = projected.split([unused, width, width + 2 * states, self.num_heads], dim=-1)
    mask = attention_mask if attention_mask is not None and attention_mask.shape == x.shape[:2] else None
    x, conv_state = _convolve(self, _unpadded(x, mask, last_state), last_state)
    x, b, c = _unpadded(x, mask, last_state).split([width, states, states], dim=-1)
    x = x.unflatten(-1, (self.num_heads, self.head_dim))  # [B, T, H, P]
    b, c = (
        y.unflatten(-1, (self.n_groups, self.ssm_state_size)).repeat_interleave(self.num_heads // self.n_groups, 2)
        for y in (b, c)
    )  # [B, T, H, N]
    dt = F.softplus(dt.float() + self.dt_bias.float()).clamp(*self.dt_limit).unsqueeze(-1)  # [B, T, H, 1]
    a = -self.A_log.float().exp().unsqueeze(-1)
    past = None if last_state is None else last_state["recurrent_state"].mT  # [B, H, N, P]
    y, state = gated_linear_attention(c, b, x * dt.to(x.dtype), a * dt, scale=1.0, state=past)
    y = (y + x * self._get_D(expand_to_head_dim=True).to(x.dtype)).flatten(2)
    y = self.norm(y, gate) if self.rmsnorm else y * self.act(gate)
    output = self.out_proj(y.to(input_states.dtype))
    return output, conv_state if use_cache or last_state is not None else None, state.mT.contiguous()


def _convolve(layer: Any, x: Tensor, last_state: Mapping[str, Any] | None) -> tuple[Tensor, Tensor]:
    """The causal depthwise convolution of [B, T, D] and the last W inputs [B, D, W] for the next call."""
    convolution: nn.Conv1d = layer.conv1d
    size = convolution.kernel_size[0]
    inputs = x.mT  # [B, D, T]
    if last_state is None:
        inputs = F.pad(inputs, (size, 0))
    else:
        inputs = torch.cat([last_state["conv_state"].to(x.dtype), inputs], -1)
    y = F.conv1d(inputs[..., 1:], convolution.weight, convolution.bias, groups=inputs.shape[1])
    return layer.act(y.mT), inputs[..., -size:].contiguous()


def _unpadded(x: Tensor, mask: Tensor | None, last_state: Mapping[str, Any] | None) -> Tensor:
    """``x`` with zeros where left padding stands; a cached call has none."""
    return x if mask is None or last_state is not None else x * mask.unsqueeze(-1).to(x.dtype)
