"""Hidden states in, hidden states out: HGRN in one or both directions, or any backbone of transformers or fla.

Both families that read sequences of numbers have this file; it depends on their config for nothing but sizes.
"""

import copy
import importlib.util
import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


def scan(x: Tensor, forget: Tensor) -> Tensor:
    """The recurrence h_t = forget_t * h_(t-1) + x_t from h_0 = 0, all [B, T, D].

    Time is cut into about sqrt(T) chunks that run side by side; what each hands to the next is added afterwards.
    """
    batch, length, width = x.shape
    size = max(1, math.isqrt(length - 1) + 1)
    chunks = -(-length // size)
    padding = (0, 0, 0, chunks * size - length)
    x = F.pad(x, padding).view(batch, chunks, size, width).clone()
    products = F.pad(forget, padding).view(batch, chunks, size, width).clone()
    for step in range(1, size):
        x[:, :, step].addcmul_(products[:, :, step], x[:, :, step - 1])
        products[:, :, step].mul_(products[:, :, step - 1])
    for chunk in range(1, chunks):
        x[:, chunk].addcmul_(products[:, chunk], x[:, chunk - 1, -1:])
    return x.view(batch, -1, width)[:, :length]


class _Recurrence(torch.autograd.Function):
    """``scan`` with gradients by the same scan, run backwards in time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forget: Tensor) -> Tensor:
        hidden = scan(x, forget)
        ctx.save_for_backward(hidden, forget)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        hidden, forget = ctx.saved_tensors
        # What a state gives to the next one comes back over the next one's forget gate.
        onward = F.pad(forget[:, 1:], (0, 0, 0, 1))
        given = scan(gradients[0].flip(1), onward.flip(1)).flip(1)
        return given, given * F.pad(hidden[:, :-1], (0, 0, 1, 0))


def recurrence(x: Tensor, forget: Tensor, state: Tensor | None = None) -> Tensor:
    """``scan`` from ``state`` [B, D]: by fla's kernel where there is a GPU, in float32 everywhere.

    Args:
        x: [B, T, D], what is written.
        forget: [B, T, D] in (0, 1), what is kept.
        state: [B, D], from which it goes on.
    """
    x, forget = x.float(), forget.float()
    if state is not None:
        x = torch.cat([x[:, :1] + forget[:, :1] * state.unsqueeze(1), x[:, 1:]], 1)
    if x.is_cuda and importlib.util.find_spec("fla") is not None:
        kernel = importlib.import_module("fla.ops.hgrn").fused_recurrent_hgrn
        return kernel(x, forget.log())[0]
    return _Recurrence.apply(x, forget)  # type: ignore[return-value]


class HgrnMixer(nn.Module):
    """HGRN (Qin et al. 2023, https://arxiv.org/abs/2311.04823) without its rotation, as fla has it.

    f = low + (1 - low) sigmoid(W_f x), h_t = f h_(t-1) + (1 - f) silu(W_i x), out = W_o (norm(h) silu(W_g x)).
    In both directions, half of the channels read from the end.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.directions = 2 if config.bidirectional else 1
        inner = self.directions * config.hidden_size
        self.i_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.f_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.g_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, low: Tensor, mask: Tensor | None, states: dict[int, Tensor] | None, key: int):
        """Mixes [B, T, D].

        Args:
            hidden: [B, T, D].
            low: [D], the least that the forget gates of this layer keep.
            mask: [B, T] bool, False where there is padding, or None.
            states: the last states of a stream by layer, which are used and replaced; None for whole sequences.
            key: the layer's place in ``states``.
        """
        low = low.repeat(self.directions)
        forget = low + (1 - low) * self.f_proj(hidden).float().sigmoid()  # [B, T, directions * D]
        x = F.silu(self.i_proj(hidden).float()) * (1 - forget)
        if mask is not None:
            x = x * mask.unsqueeze(-1)  # from the end, padding comes first, and must leave no trace
        if self.directions == 2:
            x, forget = _turned(x), _turned(forget)
        mixed = recurrence(x, forget, None if states is None else states.get(key))
        if states is not None:
            states[key] = mixed[:, -1].detach()
        if self.directions == 2:
            mixed = _turned(mixed)
        normed = self.norm(mixed.unflatten(-1, (self.directions, -1)).to(hidden.dtype)).flatten(-2)
        return self.o_proj(normed * F.silu(self.g_proj(hidden)))


def _turned(both: Tensor) -> Tensor:
    """[B, T, 2 D] with time running backwards in the second half of the channels."""
    forwards, backwards = both.chunk(2, -1)
    return torch.cat([forwards, backwards.flip(1)], -1)


class HgrnMLP(nn.Module):
    """The gated MLP, [B, T, D] in and out."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class HgrnBlock(GradientCheckpointingLayer):
    """Mixer and MLP, each after a norm, with dropout and a residual."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.mixer_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mixer = HgrnMixer(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = HgrnMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden: Tensor,
        low: Tensor,
        mask: Tensor | None = None,
        states: dict[int, Tensor] | None = None,
    ) -> Tensor:
        mixed = self.mixer(self.mixer_norm(hidden), low, mask, states, self.layer_idx)
        hidden = hidden + self.dropout(mixed)
        return hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))


class HgrnEncoder(nn.Module):
    """HGRN layers whose least forget gates rise with depth, so that high layers remember long."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.layers = nn.ModuleList(HgrnBlock(config, index) for index in range(config.num_hidden_layers))
        self.lower_bounds = nn.Parameter(torch.zeros(config.num_hidden_layers, config.hidden_size))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, states: dict[int, Tensor] | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; arguments as in ``HgrnMixer``."""
        shares = self.lower_bounds.float().softmax(0)  # [layers, D]
        lows = shares.cumsum(0) - shares[0]
        for layer, low in zip(self.layers, lows, strict=True):
            hidden = layer(hidden, low=low, mask=mask, states=states)
        return self.norm(hidden)


class BackboneEncoder(nn.Module):
    """A backbone of transformers or fla, and for both directions a second one that reads from the end."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.forwards = _backbone(config)
        self.backwards = _backbone(config) if config.bidirectional else None

    def forward(self, hidden: Tensor, mask: Tensor | None = None, states: dict[int, Tensor] | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; ``mask`` as in ``HgrnMixer``."""
        if states is not None:
            raise ValueError("a backbone reads whole sequences: only a model without one can be streamed")
        encoded = self._run(self.forwards, hidden, mask)
        if self.backwards is None:
            return encoded
        order = _reversal(hidden, mask)
        turned = self._run(self.backwards, hidden.gather(1, order.expand_as(hidden)), mask)
        return encoded + turned.gather(1, order.expand_as(turned))

    def _run(self, backbone: PreTrainedModel, hidden: Tensor, mask: Tensor | None) -> Tensor:
        # Padding comes last, so what only looks back never sees it; fla's masks are for padding that comes first.
        is_fla = type(backbone).__module__.startswith("fla.")
        options = {} if is_fla or mask is None else {"attention_mask": mask.long()}
        return backbone(inputs_embeds=hidden, use_cache=False, **options).last_hidden_state


def _reversal(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T, 1]: where each place of the rows read from their ends comes from; padding stays where it is."""
    places = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
    lengths = hidden.shape[1] if mask is None else mask.sum(1, keepdim=True)
    return torch.where(places < lengths, lengths - 1 - places, places).unsqueeze(-1)


def _backbone(config: PreTrainedConfig) -> PreTrainedModel:
    model = AutoModel.from_config(backbone_config(config))
    model.set_input_embeddings(None)  # it gets hidden states and has no vocabulary
    return model


def backbone_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the backbone that a config names.

    Raises:
        ValueError: neither transformers nor fla know its ``model_type``, or its width is another one.
    """
    values = copy.deepcopy(config.backbone)
    model_type = values.pop("model_type", "")
    if model_type not in CONFIG_MAPPING and importlib.util.find_spec("fla") is not None:
        importlib.import_module("fla.models")  # makes its families known
    try:
        inner = AutoConfig.for_model(model_type, **values)
    except (KeyError, ValueError) as error:
        raise ValueError(f"backbone.model_type {model_type!r} is known to neither transformers nor fla") from error
    if inner.hidden_size != config.hidden_size:
        raise ValueError(f"hidden_size {config.hidden_size} is not the backbone's {inner.hidden_size}; make them equal")
    return inner


def make_encoder(config: PreTrainedConfig) -> HgrnEncoder | BackboneEncoder:
    """The encoder that a config asks for: HGRN, or the backbone it names."""
    return BackboneEncoder(config) if config.backbone else HgrnEncoder(config)


def layers_to_keep_whole(encoder: HgrnEncoder | BackboneEncoder) -> list[str]:
    """The classes of an encoder's layers, which must not be split over devices."""
    if isinstance(encoder, HgrnEncoder):
        return [HgrnBlock.__name__]
    return list(encoder.forwards._no_split_modules or [])


def pad_mask(attention_mask: Tensor | None) -> Tensor | None:
    """A mask [B, T] as bool; None where nothing is padding.

    Raises:
        ValueError: padding comes before the end of a row.
    """
    if attention_mask is None:
        return None
    mask = attention_mask.bool()
    if mask.device.type == "cpu" and bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("attention_mask: padding must come last in every row; set padding_side = 'right'")
    return mask
